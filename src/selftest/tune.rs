//! `grouper kernels tune`: the GEMMs of a model, timed; rows for `kernels/gemm.tsv`.

use std::path::Path;

use crate::backends::cuda::Cuda;
use crate::error::Result;
use crate::model::Model;

/// Loads a model so that every shape of its weights is timed. The rows go to standard output, what was gained to standard error.
///
/// # Errors
///
/// A device that can't be used, a folder that can't be loaded.
pub fn gemms(ordinal: usize, folder: &Path) -> Result<()> {
    let cuda = Cuda::tuning(ordinal)?;
    let _model = Model::load(&cuda, folder)?;
    let place = cuda.gemm_place();
    for choice in cuda.gemm_choices() {
        let row = choice.row;
        let Some([time, first, fastest]) = choice.times else { continue };
        println!("{place}\t{row}");
        eprintln!(
            "[{}, {}]{} {:>5} rows: {time:>8.2} µs ({:.0} TFLOP/s), cublasLt's first admitted {first:.2}, fastest of any bits {fastest:.2}",
            row.n,
            row.k,
            if row.bias { " + bias" } else { "" },
            row.rows,
            2.0 * (row.n * row.k * row.rows) as f32 / time / 1e6
        );
    }
    Ok(())
}
