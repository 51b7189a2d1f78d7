//! What the tensor memory accelerator of sm_90 and later knows of a matrix.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::device::check;

/// A matrix of bf16 rows that is moved in boxes. What a fetched box has outside of it comes as zeros; what a stored one has there is dropped.
#[derive(Clone, Copy)]
pub struct RowTiles {
    /// A multiple of 16.
    pub address: u64,
    pub rows: usize,
    pub width: usize,
    /// Values from one row to the next, a multiple of eight.
    pub stride: usize,
    /// Rows and columns of a box: at most 256; 64 columns if swizzled, else a multiple of eight.
    pub boxes: [usize; 2],
    /// Over 128 bytes, as products of warpgroups read tiles.
    pub swizzled: bool,
}

impl RowTiles {
    pub fn encode(&self) -> sys::CUtensorMap {
        use sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 as BFLOAT16;
        use sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as ZEROS;
        use sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE as NO_INTERLEAVE;
        use sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B as LINES_OF_256;
        use sys::CUtensorMapSwizzle_enum::{CU_TENSOR_MAP_SWIZZLE_128B as SWIZZLE, CU_TENSOR_MAP_SWIZZLE_NONE as NO_SWIZZLE};
        let sizes = [self.width as u64, self.rows as u64];
        let strides = [2 * self.stride as u64];
        let boxes = [self.boxes[1] as u32, self.boxes[0] as u32];
        let steps = [1, 1];
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // Safety: the arrays have as many entries as the rank says; the address is encoded, not read.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                BFLOAT16,
                2,
                self.address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                NO_INTERLEAVE,
                if self.swizzled { SWIZZLE } else { NO_SWIZZLE },
                LINES_OF_256,
                ZEROS,
            )
        };
        check("describing a matrix", encoded.result());
        map
    }
}
