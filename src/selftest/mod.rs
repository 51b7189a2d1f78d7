//! `grouper selftest`: a GPU against the definition. Every kernel against the CPU's bf16 backend on real and awkward shapes, the bits
//! that must not depend on a step's company, and a thousand sequences of the engine alone, in company and under pressure; one table
//! of the differences. On a CPU, which is the definition, the engine is checked against itself.
//!
//! `grouper kernels check` compiles the kernels and needs no GPU; `grouper kernels time` times some of them.

mod attention;
mod elementwise;
mod engine;
mod gemm;
mod projection;
mod sampler;
mod sequences;
mod speed;
mod tune;

use std::path::PathBuf;
use std::time::Instant;

use half::bf16;

use crate::backends::cpu::Cpu;
use crate::backends::cuda::{self, Cuda};
use crate::backends::{Backend, Element};
use crate::engine::Device;
use crate::error::{Error, Result};
pub use speed::run as time_kernels;
pub use tune::gemms as tune_gemms;

#[derive(Clone, Debug)]
pub struct SelftestConfig {
    pub device: Device,
    /// Shapes of small models only.
    pub small: bool,
    /// Which checks: of the kernels, of the engine.
    pub kernels: bool,
    pub engine: bool,
    /// A folder for the checks of the engine.
    pub model: PathBuf,
    /// Sequences of those.
    pub sequences: usize,
    /// No sequence gets more new tokens.
    pub max_tokens: Option<usize>,
    /// Launches every step kernel by kernel.
    pub enforce_eager: bool,
}

/// Runs every check and prints a row each.
///
/// # Errors
///
/// A device that can't be used, and checks that failed, by number.
pub fn run(config: &SelftestConfig) -> Result<()> {
    let started = Instant::now();
    let mut table = Table::default();
    if let Device::Cuda(ordinal) = config.device
        && config.kernels
    {
        kernels(ordinal, config.small, &mut table)?;
    }
    if config.engine {
        engine::run(config, &mut table)?;
    }
    let failed = table.rows.iter().filter(|row| !row.passed).count();
    println!("{} checks in {:.1} s, {failed} failed", table.rows.len(), started.elapsed().as_secs_f64());
    match failed {
        0 => Ok(()),
        _ => Err(Error::Setup(format!("{failed} of {} checks failed", table.rows.len()))),
    }
}

/// Every kernel of a GPU.
fn kernels(ordinal: usize, small: bool, table: &mut Table) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pair = Pair { cpu: Cpu::new(threads)?, cuda: Cuda::new(ordinal, true, false)? };
    println!("{} against {}", pair.cuda.name(), pair.cpu.name());
    elementwise::run(&pair, small, table)?;
    gemm::run(&pair, small, table)?;
    projection::run(&pair, small, table)?;
    attention::run(&pair, small, table)?;
    sampler::run(&pair, small, table)
}

/// The definition and what is compared with it.
struct Pair {
    cpu: Cpu<bf16>,
    cuda: Cuda,
}

/// An operation that runs on either backend and gives what it computed.
trait Operation {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>>;
}

impl Pair {
    /// Compares an operation's results: `tolerance` bounds the difference relative to the value and the mean size of all values.
    fn compare(&self, name: &str, case: String, tolerance: f32, operation: &impl Operation, table: &mut Table) -> Result<()> {
        let (expected, ours) = (operation.run(&self.cpu)?, operation.run(&self.cuda)?);
        let (worst, at) = difference(&ours, &expected);
        let detail = match worst <= tolerance {
            true => String::new(),
            false => format!(", at {at} of {}: {} against {}", expected.len(), ours[at], expected[at]),
        };
        table.push(name, case, worst <= tolerance, format!("{worst:.2e} of {tolerance:.0e}{detail}"));
        Ok(())
    }
}

/// The largest `|a - b| / (|b| + rms(b))` and where it is; infinite where one is not a number and the other is.
fn difference(ours: &[f32], expected: &[f32]) -> (f32, usize) {
    assert_eq!(ours.len(), expected.len(), "two backends gave different amounts");
    let squares: f64 = expected.iter().filter(|x| x.is_finite()).map(|x| f64::from(*x) * f64::from(*x)).sum();
    let rms = (squares / expected.len().max(1) as f64).sqrt() as f32 + f32::MIN_POSITIVE;
    let one = |(a, b): (&f32, &f32)| match a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) {
        true => 0.0,
        false => Some((a - b).abs() / (b.abs() + rms)).filter(|d| !d.is_nan()).unwrap_or(f32::INFINITY),
    };
    ours.iter().zip(expected).map(one).enumerate().fold((0.0, 0), |worst, (i, d)| if d > worst.0 { (d, i) } else { worst })
}

/// What was found, printed as it comes.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
}

struct Row {
    passed: bool,
}

impl Table {
    fn push(&mut self, name: &str, case: String, passed: bool, found: String) {
        println!("{} {name:<18} {case:<58} {found}", if passed { "ok  " } else { "FAIL" });
        self.rows.push(Row { passed });
    }

    /// A check of bits: how many values differ.
    fn push_bits(&mut self, name: &str, case: String, differ: usize, total: usize) {
        self.push(name, case, differ == 0, format!("{differ} of {total} differ in bits"));
    }
}

fn differing_bits(a: &[f32], b: &[f32]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count()
}

/// Numbers without pattern, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `n`.
    fn below(&mut self, n: usize) -> usize {
        ((self.word() >> 16) % n as u64) as usize
    }

    /// About normal, of standard deviation `size`.
    fn value(&mut self, size: f32) -> f32 {
        let word = self.word();
        let sum = [0, 16, 32, 48].map(|shift| (word >> shift & 0xFFFF) as f32).iter().sum::<f32>();
        (sum / 65_536.0 - 2.0) * 1.732 * size
    }

    fn values(&mut self, n: usize, size: f32) -> Vec<f32> {
        (0..n).map(|_| self.value(size)).collect()
    }

    fn rounded(&mut self, n: usize, size: f32) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f32(self.value(size))).collect()
    }
}

fn upload<B: Backend, T: Element>(b: &B, values: &[T]) -> Result<B::Buf<T>> {
    let mut buf = b.alloc(values.len())?;
    b.upload(values, &mut buf);
    Ok(buf)
}

fn read<B: Backend>(b: &B, buf: &B::Buf<f32>, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    b.download(buf, &mut values);
    values
}

fn read_rounded<B: Backend<Float = bf16>>(b: &B, buf: &B::Buf<bf16>, len: usize) -> Vec<f32> {
    let mut values = vec![bf16::ZERO; len];
    b.download(buf, &mut values);
    values.iter().map(|x| x.to_f32()).collect()
}

/// Bytes that kernels may spill: their launch bounds keep more blocks on a multiprocessor than the registers would.
const SPILLS_ALLOWED: &[(&str, usize)] = &[("sample_full", 96), ("attention_wide_128", 160), ("prompt_attention_128", 96)];

/// Compiles every kernel for the architectures and prints registers and spills.
///
/// # Errors
///
/// A source that does not compile, or kernels that spill registers.
pub fn check_kernels(architectures: &[String]) -> Result<()> {
    let mut spilling = Vec::new();
    for arch in architectures {
        let started = Instant::now();
        let usage = cuda::kernels::usage(arch)?;
        println!("{arch}: {} kernels in {:.1} s", usage.len(), started.elapsed().as_secs_f64());
        for u in &usage {
            println!(
                "  {:<24} {:<26} {:>3} registers, {} bytes of stack, {} spilled",
                u.source, u.kernel, u.registers, u.stack_bytes, u.spill_bytes
            );
        }
        let allowed = |kernel: &str| SPILLS_ALLOWED.iter().find(|(name, _)| *name == kernel).map_or(0, |(_, bytes)| *bytes);
        spilling.extend(usage.iter().filter(|u| u.spill_bytes > allowed(&u.kernel)).map(|u| format!("{} on {arch}", u.kernel)));
    }
    match spilling.as_slice() {
        [] => Ok(()),
        names => Err(Error::Setup(format!("kernels spill registers: {}", names.join(", ")))),
    }
}
