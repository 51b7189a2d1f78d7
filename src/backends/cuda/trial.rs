//! Whether a kernel sums as the reference algorithm of a shape does: tried on random inputs when the first weight of the shape is loaded.

use std::sync::Arc;

use cudarc::driver::result;
use half::bf16;

use super::device::{Buf, Device, check};
use super::gated::{Gated, GatedCall};
use super::sampler::{PART_BYTES, PartsCall, Sampler};
use super::staging::Uploads;
use super::turned::{Places, Turned, TurnedCall};
use super::weight::{Weight, row_stride};
use crate::backends::{DRAW_TILE, NO_COUNTS, NO_TOKEN, SampleRow};
use crate::error::Result;
use crate::rng::philox;

/// Distinct rows of a trial's input, and rows of the reference.
pub const TRIAL_ROWS: usize = 64;

/// Random inputs, [`TRIAL_ROWS`] rows over and over, and room for a result.
pub struct Trial {
    device: Arc<Device>,
    pub x: Buf<bf16>,
    pub bias: Buf<f32>,
    pub out: Buf<f32>,
}

impl Trial {
    pub fn new(device: &Arc<Device>, uploads: &Uploads, w: &Weight, rows: usize) -> Result<Self> {
        let normal = |i: usize, key: u32| {
            // The sum of two uniforms is spread enough to tell one order of summation from another.
            let [a, b, ..] = philox([i as u32, key, 0, 0], [0x6772_6F75, 0x7065_7221]);
            (a as f32 + b as f32) * (1.0 / 2f32.powi(31)) - 2.0
        };
        let x = Buf::<bf16>::new(device, rows * w.ld)?;
        let period = TRIAL_ROWS * w.ld;
        let values: Vec<bf16> = (0..period).map(|i| if i % w.ld < w.k { bf16::from_f32(normal(i, 0)) } else { bf16::ZERO }).collect();
        for start in (0..rows * w.ld).step_by(period) {
            let n = period.min(rows * w.ld - start);
            uploads.copy(bytemuck::cast_slice(&values[..n]), x.at(start));
        }
        let bias = Buf::<f32>::new(device, w.n)?;
        uploads.copy(bytemuck::cast_slice(&(0..w.n).map(|i| normal(i, 1)).collect::<Vec<f32>>()), bias.ptr());
        Ok(Trial { device: device.clone(), x, bias, out: Buf::new(device, rows * w.n)? })
    }

    pub fn read(&self, first: usize, rows: usize, n: usize) -> Vec<f32> {
        let mut values = vec![0f32; rows * n];
        self.device.synchronize();
        // Safety: the buffer holds these rows; the stream is empty.
        check("reading a trial", unsafe { result::memcpy_dtoh_sync(&mut values, self.out.at(first * n)) });
        values
    }

    /// Whether first, middle and last row have the bits of the reference's.
    pub fn rows_agree(&self, rows: usize, n: usize, expected: &[f32]) -> bool {
        [0, rows / 2, rows - 1].into_iter().all(|row| self.row_agrees(row, n, expected))
    }

    pub fn row_agrees(&self, row: usize, n: usize, expected: &[f32]) -> bool {
        let expected = &expected[row % TRIAL_ROWS * n..][..n];
        self.read(row, 1, n).iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits())
    }

    /// Whether products that are activated where they are summed have the bits of the reference, whose rows are in
    /// `out`, activated.
    pub fn gated_agrees(&self, gated: &Gated, w: &Weight, bias: Option<u64>, most: usize) -> Result<bool> {
        let stride = row_stride(w.n / 2);
        let out = Buf::<bf16>::new(&self.device, most * stride)?;
        let read = |row: usize, rows: usize| {
            let mut values = vec![0u16; rows * stride];
            self.device.synchronize();
            // Safety: the buffer holds these rows; the stream is empty.
            check("reading a trial", unsafe { result::memcpy_dtoh_sync(&mut values, out.at(row * stride)) });
            values
        };
        gated.activate(self.out.ptr(), TRIAL_ROWS, w.n / 2, out.ptr());
        let expected = read(0, TRIAL_ROWS);
        Ok(gated.trial_rows(most).into_iter().all(|rows| {
            self.device.zero(out.ptr(), most * stride * size_of::<bf16>());
            gated.launch(w, &GatedCall { x: self.x.ptr(), bias, rows, out: out.ptr() });
            let agrees = |row: usize| read(row, 1) == expected[row % TRIAL_ROWS * stride..][..stride];
            [0, rows / 2, rows - 1].into_iter().all(agrees)
        }))
    }

    /// Whether products that are turned where they are summed have the bits of the reference, whose rows are in `out`; by sort of
    /// places. With the negated sums of a row as bias, and without an angle, that row must come out as zeros.
    pub fn turned_agree(&self, turned: &Turned, uploads: &Uploads, w: &Weight, most: usize) -> Result<[bool; 2]> {
        let expected = self.read(0, TRIAL_ROWS, w.n);
        let mut agree = [false; 2];
        for (sort, agrees) in agree.iter_mut().enumerate() {
            let Some(places) = turned.trials(w, 0, 0)[sort] else { continue };
            let (Places::Paged { shape, .. } | Places::Apart { shape, .. }) = places;
            let numbers = turned.trial_rows(&places).into_iter().filter(|rows| *rows <= most);
            let out = Buf::<bf16>::new(&self.device, most * w.n)?;
            let bias = Buf::<f32>::new(&self.device, w.n)?;
            let straight: Vec<f32> =
                (0..most * shape.head_dim).map(|i| f32::from(u8::from(i % shape.head_dim < shape.head_dim / 2))).collect();
            let rope = Buf::<f32>::new(&self.device, straight.len())?;
            uploads.copy(bytemuck::cast_slice(&straight), rope.ptr());
            *agrees = numbers.flat_map(|rows| [0, rows / 2, rows - 1].map(|row| (rows, row))).all(|(rows, row)| {
                let Some(places) = turned.trials(w, rows, out.ptr())[sort] else { return false };
                let call = |bias| TurnedCall { x: self.x.ptr(), bias, rope: rope.ptr(), rows };
                // What a launch does not write is left from the one before.
                turned.launch(w, &call(self.bias.ptr()), &places);
                let negated: Vec<f32> = expected[row % TRIAL_ROWS * w.n..][..w.n].iter().map(|sum| -sum).collect();
                uploads.copy(bytemuck::cast_slice(&negated), bias.ptr());
                turned.launch(w, &call(bias.ptr()), &places);
                let parts = if sort == 0 { 1 } else { 3 };
                let width = w.n / parts;
                let mut values = vec![0u16; width];
                self.device.synchronize();
                (0..parts).all(|part| {
                    // Safety: the buffer holds these rows; the stream is empty.
                    check("reading a trial", unsafe { result::memcpy_dtoh_sync(&mut values, out.at((part * rows + row) * width)) });
                    values.iter().all(|value| *value == 0)
                })
            });
        }
        Ok(agree)
    }

    /// Whether parts of softmaxes have the bits of those of the reference's logits, whose rows are in `out`.
    pub fn sampled_agree(&self, sampler: &Sampler, uploads: &Uploads, w: &Weight, most: usize) -> Result<bool> {
        let words = w.n.div_ceil(DRAW_TILE) * PART_BYTES / size_of::<u32>();
        let row = |i: usize| SampleRow {
            logits_row: (i % TRIAL_ROWS) as u32,
            random: philox([(i % TRIAL_ROWS) as u32, 2, 0, 0], [0x6772_6F75, 0x7065_7221]),
            temperature: [1.0, 0.7, 0.0][i % TRIAL_ROWS % 3],
            top_p: 1.0,
            repetition_penalty: 1.0,
            counts_row: NO_COUNTS,
            forced: NO_TOKEN,
            ..SampleRow::default()
        };
        let asked = Buf::<SampleRow>::new(&self.device, most)?;
        uploads.copy(super::bytes(&(0..most).map(row).collect::<Vec<_>>()), asked.ptr());
        let read = |row: usize, rows: usize| {
            let mut values = vec![0u32; rows * words];
            self.device.synchronize();
            // Safety: there is room for these rows; the stream is empty.
            check("reading a trial", unsafe { result::memcpy_dtoh_sync(&mut values, sampler.parts().at(row * words)) });
            values
        };
        sampler.launch_parts(self.out.ptr(), asked.ptr(), TRIAL_ROWS, w.n);
        let expected = read(0, TRIAL_ROWS);
        Ok(sampler.trial_rows(w, most).into_iter().all(|rows| {
            self.device.zero(sampler.parts().ptr(), rows * words * size_of::<u32>());
            let call = PartsCall { x: self.x.ptr(), rows, asked: asked.ptr(), banned: 0, logits: 0 };
            sampler.launch_parts_of_product(w, &call);
            let agrees = |row: usize| read(row, 1) == expected[row % TRIAL_ROWS * words..][..words];
            [0, rows / 2, rows - 1].into_iter().all(agrees)
        }))
    }
}
