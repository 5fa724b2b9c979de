//! What figures are drawn on: each as SVG and as PNG, in the same size and colours.
//!
//! A machine without fonts draws them too: text is measured and painted from a subset of DejaVu Sans
//! that is compiled in (`font/README.md`). In an SVG text stays text, and the viewer's font shows it.
//! PNGs are drawn at twice the size of the SVG, for sharp text.

pub(crate) mod axes;
mod raster;
pub(crate) mod style;

use plotters::{
    coord::Shift,
    prelude::{BitMapBackend, DrawingArea, DrawingBackend, IntoDrawingArea, SVGBackend},
    style::{FontStyle, register_font},
};

use self::{raster::Raster, style::Scale};

/// In what form each figure is written: what its files end with.
pub(crate) const FORMATS: [&str; 2] = ["svg", "png"];

/// Width and height of a figure, in pixels of the SVG.
pub(crate) const SIZE: (u32, u32) = (960, 540);

/// How many pixels of a PNG are one of the SVG.
const PNG_SCALE: u32 = 2;

/// Glyphs of DejaVu Sans for what figures say.
pub(crate) static FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");

/// Why a figure was not drawn.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Something that can be drawn on any ground.
pub(crate) trait Figure {
    /// Draws it, each pixel of the design `scale` pixels wide.
    ///
    /// # Errors
    ///
    /// When the ground fails.
    fn paint<DB>(&self, area: &DrawingArea<DB, Shift>, scale: Scale) -> Result<(), Failure>
    where
        DB: DrawingBackend,
        DB::ErrorType: 'static;
}

/// Returns the figure's files, in the order of [`FORMATS`].
///
/// # Errors
///
/// When it cannot be drawn.
pub(crate) fn files(figure: &impl Figure) -> Result<[Vec<u8>; 2], Failure> {
    Ok([svg(figure)?, png(figure)?])
}

fn paint<DB>(
    figure: &impl Figure,
    area: &DrawingArea<DB, Shift>,
    scale: Scale,
) -> Result<(), Failure>
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    register_font("sans-serif", FontStyle::Normal, FONT).map_err(|_| "the font is damaged")?;
    figure.paint(area, scale)?;
    area.present()?;
    Ok(())
}

pub(crate) fn svg(figure: &impl Figure) -> Result<Vec<u8>, Failure> {
    let mut text = String::new();
    paint(figure, &SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), Scale(1))?;
    Ok(text.into_bytes())
}

pub(crate) fn png(figure: &impl Figure) -> Result<Vec<u8>, Failure> {
    let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
    // Three bytes a pixel.
    let mut pixels = vec![0; 3 * (width as usize) * (height as usize)];
    let bitmap = BitMapBackend::with_buffer(&mut pixels, (width, height));
    let area = Raster(bitmap).into_drawing_area();
    paint(figure, &area, Scale(PNG_SCALE))?;
    drop(area);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(file)
}
