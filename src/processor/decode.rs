//! From the bytes of an image file to 8-bit RGB, within limits that are checked before anything is decoded.
//!
//! Conversion follows Pillow's `convert("RGB")`, which transformers applies: alpha and transparency are dropped, not composited. PNG,
//! GIF and WebP give Pillow's pixels; JPEG decoders differ from each other by a level or two. The EXIF orientation is applied, as
//! `datasets` and transformers' `load_image` do. What a decoding library says never reaches the caller.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::resample::RgbImage;
use crate::error::{Error, Result};

/// What an image may measure before its pixels are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Pixels along the longer side.
    pub max_side: usize,
    /// Pixels in all.
    pub max_pixels: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        ImageLimits { max_side: 8192, max_pixels: 32 << 20 }
    }
}

/// What the header says, before decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    pub height: usize,
    pub width: usize,
    /// Bytes that decoding needs at its peak.
    pub decoded_bytes: usize,
}

/// Scans of a progressive JPEG: encoders write about ten, and each one costs a pass over the whole image.
const MAX_JPEG_SCANS: usize = 100;

/// Memory for what stands beside the pixels: colour profiles and texts can unpack to a thousand times their size.
const METADATA_BYTES: u64 = 16 << 20;

/// Checks kind, size and completeness of an image file.
pub fn read_header(file: &[u8], limits: ImageLimits) -> Result<ImageHeader> {
    header_of(&open(file, METADATA_BYTES)?, limits)
}

/// The pixels of an image file, of its first frame if there are several, upright.
pub fn decode(file: &[u8], limits: ImageLimits) -> Result<RgbImage> {
    let header = read_header(file, limits)?;
    let mut decoder = open(file, METADATA_BYTES + header.decoded_bytes as u64)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let (color, original) = (decoder.color_type(), decoder.original_color_type());
    let mut raw = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut raw).map_err(|e| refusal(&e))?;
    let upright = RgbImage { height: header.height, width: header.width, pixels: to_rgb(raw, color, original)? };
    turn(upright, orientation)
}

fn open(file: &[u8], max_alloc: u64) -> Result<impl ImageDecoder> {
    let format = match file {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => ImageFormat::Png,
        [0xff, 0xd8, 0xff, ..] => ImageFormat::Jpeg,
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => ImageFormat::Gif,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => ImageFormat::WebP,
        _ => return Err(Error::invalid("", "unsupported image format: PNG, JPEG, WebP and GIF are read")),
    };
    if format == ImageFormat::Jpeg {
        check_jpeg(file)?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(file), format);
    let mut allowed = Limits::default();
    allowed.max_alloc = Some(max_alloc);
    reader.limits(allowed);
    reader.into_decoder().map_err(|e| refusal(&e))
}

fn header_of(decoder: &impl ImageDecoder, limits: ImageLimits) -> Result<ImageHeader> {
    let (width, height) = decoder.dimensions();
    let (height, width) = (height as usize, width as usize);
    if height == 0 || width == 0 {
        return Err(Error::invalid("", format!("the image has {width} × {height} pixels")));
    }
    if height.max(width) > limits.max_side || height.saturating_mul(width) > limits.max_pixels {
        let ImageLimits { max_side, max_pixels } = limits;
        let message = format!("the image has {width} × {height} pixels; the limits are {max_side} a side and {max_pixels} in all");
        return Err(Error::too_large("", message));
    }
    // The decoder's buffer, an RGB copy twice while it is turned, and the coefficients that a progressive JPEG keeps.
    Ok(ImageHeader { height, width, decoded_bytes: decoder.total_bytes() as usize + 12 * height * width })
}

fn refusal(error: &ImageError) -> Error {
    Error::invalid(
        "",
        match error {
            ImageError::Unsupported(_) => "this variant of the image format is not supported",
            ImageError::Limits(_) => "decoding the image needs more memory than the limits allow",
            _ => "the image is damaged or truncated",
        },
    )
}

/// Pillow refuses a JPEG that ends before its end marker; the decoder used here would fill the rest with grey.
fn check_jpeg(file: &[u8]) -> Result<()> {
    let truncated = || Error::invalid("", "the image is damaged or truncated");
    let (mut at, mut scans) = (2, 0);
    loop {
        // Between segments stand markers and fill bytes; within a scan, everything up to the next real marker.
        while file.get(at).is_some_and(|byte| *byte != 0xff) {
            at += 1;
        }
        let marker = *file.get(at + 1).ok_or_else(truncated)?;
        match marker {
            0xff => at += 1,
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            0xd9 => return if scans > 0 { Ok(()) } else { Err(truncated()) },
            _ => {
                scans += usize::from(marker == 0xda);
                if scans > MAX_JPEG_SCANS {
                    return Err(Error::invalid("", format!("the image has more than {MAX_JPEG_SCANS} scans")));
                }
                let [high, low] = *file.get(at + 2..).and_then(|rest| rest.first_chunk()).ok_or_else(truncated)?;
                at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
}

/// Pillow's `convert("RGB")` for each layout that a decoder gives.
fn to_rgb(raw: Vec<u8>, color: ColorType, original: ExtendedColorType) -> Result<Vec<u8>> {
    let gray = |bytes_per_pixel: usize| raw.chunks_exact(bytes_per_pixel).flat_map(|pixel| [pixel[0]; 3]).collect();
    let wide: fn(&[u8]) -> u16 = |two| u16::from_ne_bytes([two[0], two[1]]);
    // Pillow reads 16-bit colour by its high bytes.
    let high = |two: &[u8]| (wide(two) >> 8) as u8;
    let rgb16 = |bytes_per_pixel: usize| {
        raw.chunks_exact(bytes_per_pixel).flat_map(|pixel| [high(pixel), high(&pixel[2..]), high(&pixel[4..])]).collect()
    };
    Ok(match (color, original) {
        (ColorType::Rgb8, _) => raw,
        (ColorType::Rgba8, _) => raw.as_chunks::<4>().0.iter().flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        (ColorType::L8, _) => gray(1),
        (ColorType::La8, _) => gray(2),
        (ColorType::La16, ExtendedColorType::La16) => raw.as_chunks::<4>().0.iter().flat_map(|pixel| [high(pixel); 3]).collect(),
        // 16-bit grey is clipped at 255, not scaled: Pillow's mode I;16 holds integers, of which RGB keeps what fits.
        (ColorType::L16 | ColorType::La16, _) => {
            let stride = usize::from(color.bytes_per_pixel());
            raw.chunks_exact(stride).flat_map(|pixel| [wide(pixel).min(255) as u8; 3]).collect()
        }
        (ColorType::Rgb16, _) => rgb16(6),
        (ColorType::Rgba16, _) => rgb16(8),
        _ => return Err(Error::invalid("", "this variant of the image format is not supported")),
    })
}

fn turn(image: RgbImage, orientation: Orientation) -> Result<RgbImage> {
    if orientation == Orientation::NoTransforms {
        return Ok(image);
    }
    let buffer = image::RgbImage::from_raw(image.width as u32, image.height as u32, image.pixels);
    let mut turned = DynamicImage::from(buffer.ok_or_else(|| Error::invalid("", "the image is damaged or truncated"))?);
    turned.apply_orientation(orientation);
    let turned = turned.into_rgb8();
    Ok(RgbImage { height: turned.height() as usize, width: turned.width() as usize, pixels: turned.into_raw() })
}
