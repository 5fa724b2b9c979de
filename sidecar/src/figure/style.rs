//! What figures look like: colours, sizes, the frame with its title and legend.

use plotters::{
    coord::Shift,
    prelude::{DrawingArea, DrawingBackend, PathElement, RGBColor, Text},
    style::{Color, IntoFont, ShapeStyle, TextStyle, WHITE},
};

use super::Failure;

/// How many pixels one pixel of the design has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale(pub(crate) u32);

impl Scale {
    pub(crate) fn px(self, pixels: u32) -> u32 {
        pixels * self.0
    }

    pub(crate) fn at(self, pixels: i32) -> i32 {
        pixels * i32::try_from(self.0).expect("a scale is 1 or 2")
    }

    pub(crate) fn text(self, pixels: u32) -> TextStyle<'static> {
        TextStyle::from(("sans-serif", self.px(pixels)).into_font()).color(&INK)
    }
}

pub(crate) const INK: RGBColor = RGBColor(40, 40, 40);
pub(crate) const PALE: RGBColor = RGBColor(150, 150, 150);
/// Of what explains.
pub(crate) const SOFT: RGBColor = RGBColor(105, 105, 105);
pub(crate) const GRID: RGBColor = RGBColor(232, 232, 232);

/// Okabe and Ito's colours, which the colour-blind tell apart, without the yellow that paper swallows.
pub(crate) const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// How a line is drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stroke {
    pub(crate) colour: RGBColor,
    pub(crate) width: u32,
    pub(crate) dashed: bool,
}

/// Dashes and the gaps between them, in pixels.
pub(crate) const DASH: (u32, u32) = (7, 4);

impl Stroke {
    /// Returns the stroke of the line `n` of a figure; the first is what the others are measured by.
    pub(crate) fn of(n: usize) -> Self {
        match n.checked_sub(1) {
            None => Self { colour: INK, width: 3, dashed: false },
            Some(n) => Self {
                colour: COLOURS[n % COLOURS.len()],
                width: 2,
                dashed: n / COLOURS.len() % 2 == 1,
            },
        }
    }

    pub(crate) fn style(self, scale: Scale) -> ShapeStyle {
        self.colour.stroke_width(scale.px(self.width))
    }
}

/// Pixels around everything.
pub(crate) const MARGIN: i32 = 14;
/// Pixels that the legend is wide.
const LEGEND_WIDTH: i32 = 190;
/// Pixels from one entry of the legend to the next.
const LEGEND_LINE: i32 = 21;
/// Pixels of the line shown in the legend.
const LEGEND_STROKE: i32 = 26;
/// Pixels above the chart, for the title.
const HEAD: i32 = 62;

/// Paints the ground, title, subtitle and legend; returns what is left for the chart.
pub(crate) fn frame<DB>(
    area: &DrawingArea<DB, Shift>,
    scale: Scale,
    (title, subtitle): (&str, &str),
    legend: &[(String, Stroke)],
) -> Result<DrawingArea<DB, Shift>, Failure>
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    area.fill(&WHITE)?;
    let left = scale.at(MARGIN);
    area.draw(&Text::new(title.to_owned(), (left, scale.at(12)), scale.text(19)))?;
    let small = scale.text(13).color(&SOFT);
    area.draw(&Text::new(subtitle.to_owned(), (left, scale.at(38)), small))?;
    let (width, _) = area.dim_in_pixel();
    let width = i32::try_from(width).expect("a figure is a few thousand pixels wide");
    let (rest, _) = area.split_horizontally(width - scale.at(LEGEND_WIDTH));
    let (_, chart) = rest.split_vertically(scale.at(HEAD));
    let x = width - scale.at(LEGEND_WIDTH) + scale.at(MARGIN);
    let mut y = scale.at(HEAD + 16);
    for (name, stroke) in legend {
        entry(area, scale, (x, y), name, *stroke)?;
        y += scale.at(LEGEND_LINE);
    }
    Ok(chart)
}

fn entry<DB>(
    area: &DrawingArea<DB, Shift>,
    scale: Scale,
    (x, y): (i32, i32),
    name: &str,
    stroke: Stroke,
) -> Result<(), Failure>
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    let end = x + scale.at(LEGEND_STROKE);
    let dash = |pixels: u32| i32::try_from(scale.px(pixels)).expect("a dash is a few pixels");
    let (on, off) = if stroke.dashed { (dash(DASH.0), dash(DASH.1)) } else { (end - x, 1) };
    let mut from = x;
    while from < end {
        let to = end.min(from + on);
        area.draw(&PathElement::new([(from, y), (to, y)], stroke.style(scale)))?;
        from = to + off;
    }
    let text = (end + scale.at(8), y - scale.at(7));
    area.draw(&Text::new(name.to_owned(), text, scale.text(13)))?;
    Ok(())
}
