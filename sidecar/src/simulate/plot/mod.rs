//! Figures of a comparison, each as SVG and as PNG.

mod charts;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use plotters::{
    coord::Shift,
    prelude::{DrawingArea, DrawingBackend},
};

use super::compare::Figure;
use crate::figure::{self, FORMATS, Failure, style::Scale};

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
        source: Failure,
    },
}

type Drawn = Result<(), Failure>;

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
        let drawn = figure::files(&Named { name, figure }).map_err(failed)?;
        for (format, bytes) in FORMATS.iter().zip(drawn) {
            let file = folder.join(format!("{name}.{format}"));
            fs::write(&file, bytes).map_err(|source| PlotError::Write { file, source })?;
        }
    }
    Ok(names)
}

/// One figure of a regime.
struct Named<'a> {
    name: &'a str,
    figure: &'a Figure,
}

impl figure::Figure for Named<'_> {
    fn paint<DB>(&self, area: &DrawingArea<DB, Shift>, scale: Scale) -> Drawn
    where
        DB: DrawingBackend,
        DB::ErrorType: 'static,
    {
        match self.name.split_once('-').map(|(kind, _)| kind) {
            Some("utility") => charts::utility(self.figure, area, scale),
            Some("rates") => charts::rates(self.figure, area, scale),
            _ => charts::drift(self.figure, area, scale),
        }
    }
}

#[cfg(test)]
mod tests;
