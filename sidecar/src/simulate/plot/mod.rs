//! Figures of a comparison, each as SVG and as PNG.
//!
//! A machine without fonts draws them too: text is measured and painted from a subset of DejaVu Sans
//! that is compiled in (`font/README.md`). In an SVG text stays text, and the viewer's font shows it.
//! PNGs are drawn at twice the size of the SVG, for sharp text.

mod charts;
mod raster;
mod style;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use plotters::{
    coord::Shift,
    prelude::{BitMapBackend, DrawingArea, DrawingBackend, IntoDrawingArea, SVGBackend},
    style::{FontStyle, register_font},
};

use self::{raster::Raster, style::Scale};
use super::compare::Figure;

/// In what form each figure is written.
pub(super) const FORMATS: [&str; 2] = ["svg", "png"];

/// Width and height of a figure, in pixels of the SVG.
const SIZE: (u32, u32) = (960, 540);

/// How many pixels of a PNG are one of the SVG.
const PNG_SCALE: u32 = 2;

/// Glyphs of DejaVu Sans for what figures say.
static FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");

/// Why a figure was not drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// The folder cannot be made.
    #[error("cannot make the folder: name one that you may write to")]
    Folder(#[source] io::Error),
    /// A file cannot be written.
    #[error("cannot write {}", file.display())]
    Write {
        /// Which file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The drawing failed.
    #[error("cannot draw {figure}")]
    Draw {
        /// Which figure.
        figure: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

type Drawn = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Makes the folder for figures.
///
/// # Errors
///
/// When it cannot be made.
pub(super) fn prepare(folder: &Path) -> Result<(), PlotError> {
    fs::create_dir_all(folder).map_err(PlotError::Folder)
}

/// Draws all figures of one regime into `folder`, and returns their names without extension.
///
/// # Errors
///
/// When a figure cannot be drawn or written.
pub(super) fn draw(figure: &Figure, folder: &Path) -> Result<Vec<String>, PlotError> {
    let regime = figure.regime.name;
    let mut names = vec![format!("utility-{regime}"), format!("rates-{regime}")];
    if figure.change.is_some() && !figure.quality.is_empty() {
        names.push(format!("drift-{regime}"));
    }
    for name in &names {
        let failed = |source| PlotError::Draw { figure: name.clone(), source };
        let svg = as_svg(name, figure).map_err(failed)?;
        let png = as_png(name, figure).map_err(failed)?;
        for (format, bytes) in FORMATS.iter().zip([svg, png]) {
            let file = folder.join(format!("{name}.{format}"));
            fs::write(&file, bytes).map_err(|source| PlotError::Write { file, source })?;
        }
    }
    Ok(names)
}

fn paint<DB>(name: &str, figure: &Figure, area: &DrawingArea<DB, Shift>, scale: Scale) -> Drawn
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    register_font("sans-serif", FontStyle::Normal, FONT).map_err(|_| "the font is damaged")?;
    match name.split_once('-').map(|(kind, _)| kind) {
        Some("utility") => charts::utility(figure, area, scale),
        Some("rates") => charts::rates(figure, area, scale),
        _ => charts::drift(figure, area, scale),
    }?;
    area.present()?;
    Ok(())
}

fn as_svg(
    name: &str,
    figure: &Figure,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut text = String::new();
    paint(name, figure, &SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), Scale(1))?;
    Ok(text.into_bytes())
}

fn as_png(
    name: &str,
    figure: &Figure,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
    // Three bytes a pixel.
    let mut pixels = vec![0; 3 * (width as usize) * (height as usize)];
    let bitmap = BitMapBackend::with_buffer(&mut pixels, (width, height));
    let area = Raster(bitmap).into_drawing_area();
    paint(name, figure, &area, Scale(PNG_SCALE))?;
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

#[cfg(test)]
mod tests;
