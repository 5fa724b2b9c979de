//! The axes of figures: margins, grid, labels.

use std::ops::Range;

use plotters::{
    chart::{ChartBuilder, ChartContext},
    coord::{
        Shift,
        cartesian::Cartesian2d,
        ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
        types::RangedCoordf64,
    },
    prelude::{DrawingArea, DrawingBackend},
    style::Color,
};

use super::{
    Failure,
    style::{GRID, MARGIN, PALE, Scale},
};

/// A chart whose vertical axis is linear.
pub(crate) type Chart<'a, DB, X> = ChartContext<'a, DB, Cartesian2d<X, RangedCoordf64>>;

/// How a number is written beside an axis.
pub(crate) type Number<'t> = &'t dyn Fn(&f64) -> String;

/// What stands at the axes.
pub(crate) struct Labels<'t> {
    /// What the horizontal axis says; empty for one that stands above another.
    pub(crate) below: &'t str,
    /// What the vertical axis says.
    pub(crate) beside: &'t str,
    /// How numbers of the horizontal and the vertical axis are written.
    pub(crate) numbers: (Number<'t>, Number<'t>),
    /// How many numbers stand at the horizontal axis, about.
    pub(crate) count: usize,
    /// Pixels to the right of the chart: what half of the last number takes.
    pub(crate) right: i32,
}

/// Draws axes over `x` and `y` in `area`.
pub(crate) fn axes<'a, DB, X>(
    area: &'a DrawingArea<DB, Shift>,
    scale: Scale,
    (x, y): (X, Range<f64>),
    labels: &Labels<'_>,
) -> Result<Chart<'a, DB, X::CoordDescType>, Failure>
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let Labels { below, beside, numbers, count, right } = *labels;
    let mut chart = ChartBuilder::on(area)
        .margin_left(scale.at(MARGIN))
        .margin_bottom(scale.at(6))
        .margin_top(scale.at(8))
        .margin_right(scale.at(right))
        .x_label_area_size(scale.at(if below.is_empty() { 22 } else { 42 }))
        .y_label_area_size(scale.at(58))
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID.stroke_width(scale.px(1)))
        .light_line_style(GRID.mix(0.0))
        .axis_style(PALE.stroke_width(scale.px(1)))
        .set_all_tick_mark_size(scale.at(4))
        .x_labels(count)
        .y_labels(6)
        .x_label_formatter(&numbers.0)
        .y_label_formatter(&numbers.1)
        .label_style(scale.text(12))
        .axis_desc_style(scale.text(13))
        .x_desc(below)
        .y_desc(beside)
        .draw()?;
    Ok(chart)
}
