//! Figures of a replay, each as SVG and as PNG: the distribution of rates, and the first mover's way.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use plotters::{
    coord::{Shift, ranged1d::Ranged},
    prelude::{DrawingArea, DrawingBackend, IntoLogRange, PathElement, Text},
    style::{Color, WHITE},
};

use super::{report::moment, summary::Agent};
use crate::figure::{
    self, FORMATS, Failure,
    axes::{Chart, Labels, Number, axes},
    style::{COLOURS, PALE, Scale},
};

/// The most points of a distribution, each step being two: as many as a figure has pixels across.
const POINTS_MAX: usize = 600;
/// The most points of one agent's way; of more ratings each point is a mean.
const WAY_MAX: usize = 200;
/// How many numbers stand at a horizontal axis, and the pixels that half of the last one takes: a day
/// is long.
const X_LABELS: usize = 6;
const RIGHT: i32 = 30;
/// The longest name in a legend, in characters.
const NAME_MAX: usize = 26;

/// Why a figure was not drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// The folder or a file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The drawing failed.
    #[error("cannot draw {figure}")]
    Draw {
        /// Which figure.
        figure: &'static str,
        /// Why not.
        #[source]
        source: Failure,
    },
}

type Point = (f64, f64);

/// An agent's rate under each policy after each of its ratings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Way {
    /// Who.
    pub agent: String,
    /// When, in Unix milliseconds; where rows have no time, the number of the rating.
    pub at: Vec<f64>,
    /// One row for each policy: tokens per second.
    pub rates: Vec<Vec<f64>>,
    /// True when `at` is a time.
    pub timed: bool,
}

/// Draws the figures into `folder`, which is made; returns their files.
///
/// # Errors
///
/// When a figure cannot be drawn or written.
pub fn draw(
    folder: &Path,
    policies: &[&str],
    agents: &[Agent],
    way: Option<&Way>,
) -> Result<Vec<PathBuf>, PlotError> {
    fs::create_dir_all(folder)
        .map_err(|source| PlotError::Write { path: folder.to_owned(), source })?;
    let mut figures = vec![Figure::Rates(agents)];
    figures.extend(way.filter(|way| way.at.len() > 1).map(Figure::Way));
    let mut files = Vec::new();
    for figure in figures {
        let failed = |source| PlotError::Draw { figure: figure.name(), source };
        let drawn = figure::files(&Named { figure: &figure, policies }).map_err(failed)?;
        for (format, bytes) in FORMATS.iter().zip(drawn) {
            let path = folder.join(format!("{}.{format}", figure.name()));
            fs::write(&path, bytes)
                .map_err(|source| PlotError::Write { path: path.clone(), source })?;
            files.push(path);
        }
    }
    Ok(files)
}

enum Figure<'a> {
    Rates(&'a [Agent]),
    Way(&'a Way),
}

impl Figure<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Rates(_) => "rates",
            Self::Way(_) => "mover",
        }
    }
}

/// A figure, and what the policies in it are called.
struct Named<'a> {
    figure: &'a Figure<'a>,
    policies: &'a [&'a str],
}

impl figure::Figure for Named<'_> {
    fn paint<DB>(&self, area: &DrawingArea<DB, Shift>, scale: Scale) -> Result<(), Failure>
    where
        DB: DrawingBackend,
        DB::ErrorType: 'static,
    {
        match self.figure {
            Figure::Rates(agents) => rates(agents, self.policies, area, scale),
            Figure::Way(way) => mover(way, self.policies, area, scale),
        }
    }
}

/// How many agents have at most which rate.
fn rates<DB>(
    agents: &[Agent],
    policies: &[&str],
    area: &DrawingArea<DB, Shift>,
    scale: Scale,
) -> Result<(), Failure>
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    let ends = |index: usize| agents.iter().map(move |agent| agent.rates[index].end);
    let all = || (0..policies.len()).flat_map(ends);
    let low = all().fold(f64::INFINITY, f64::min) * 0.9;
    let high = all().fold(0.0, f64::max) * 1.1;
    let said = format!("share of {} agents with at most that rate", agents.len());
    let chart = frame(area, scale, ("Final refill rates", &said), policies)?;
    let span = (low..high).log_scale().base(2.0);
    let labels = Labels {
        below: "tokens a second (each step doubles)",
        beside: "share of agents, %",
        numbers: (&short, &short),
        count: X_LABELS,
        right: RIGHT,
    };
    let mut chart = axes(&chart, scale, (span, 0.0..105.0), &labels)?;
    for (index, _) in policies.iter().enumerate().rev() {
        line(&mut chart, scale, index, cumulative(ends(index).collect(), low..high))?;
    }
    Ok(())
}

/// One agent's rate over time.
fn mover<DB>(
    way: &Way,
    policies: &[&str],
    area: &DrawingArea<DB, Shift>,
    scale: Scale,
) -> Result<(), Failure>
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    let title = format!("The agent whose rate differs most: {}", way.agent);
    let every = way.at.len().div_ceil(WAY_MAX);
    let said = match every {
        1 => format!("its refill rate after each of its {} ratings", way.at.len()),
        _ => format!("its refill rate over its {} ratings, mean of {every}", way.at.len()),
    };
    let chart = frame(area, scale, (&title, &said), policies)?;
    let high = way.rates.iter().flatten().copied().fold(1.0, f64::max) * 1.05;
    let (first, last) = (way.at[0], way.at[way.at.len() - 1]);
    let span = first..last.max(first + 1.0);
    let below = if way.timed { "time" } else { "rating" };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a Unix time")]
    let day = |at: &f64| moment(*at as u64).chars().take(10).collect();
    let number: Number<'_> = if way.timed { &day } else { &short };
    let (beside, numbers) = ("tokens a second", (number, &short as Number<'_>));
    let labels = Labels { below, beside, numbers, count: X_LABELS, right: RIGHT };
    let mut chart = axes(&chart, scale, (span, 0.0..high), &labels)?;
    for (index, rates) in way.rates.iter().enumerate().rev() {
        let points = way.at.chunks(every).zip(rates.chunks(every));
        line(
            &mut chart,
            scale,
            index,
            points.map(|(at, rates)| (mean(at), mean(rates))).collect(),
        )?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "fewer ratings than 2^52")]
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Returns a number as an axis has room for it.
fn short(value: &f64) -> String {
    if *value >= 1e6 { format!("{value:e}") } else { format!("{value}") }
}

/// Returns the steps of the cumulative distribution of `values`, in per cent; at most
/// [`POINTS_MAX`] of them, at even shares.
#[allow(clippy::cast_precision_loss, reason = "fewer agents than 2^52")]
fn cumulative(mut values: Vec<f64>, span: Range<f64>) -> Vec<Point> {
    values.sort_by(f64::total_cmp);
    let every = values.len().div_ceil(POINTS_MAX);
    let mut points = vec![(span.start, 0.0)];
    for (index, value) in values.iter().enumerate() {
        // Equal values are one step.
        let ends = values.get(index + 1).is_none_or(|next| next > value);
        if ends || index % every == 0 {
            let share = 100.0 * (index + 1) as f64 / values.len() as f64;
            let below = points[points.len() - 1].1;
            points.extend([(*value, below), (*value, share)]);
        }
    }
    points.push((span.end, 100.0));
    points
}

/// Paints the ground, title, subtitle and legend; returns what is left for the chart.
fn frame<DB>(
    area: &DrawingArea<DB, Shift>,
    scale: Scale,
    (title, subtitle): (&str, &str),
    policies: &[&str],
) -> Result<DrawingArea<DB, Shift>, Failure>
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.to_owned(), (scale.at(14), scale.at(12)), scale.text(19)))?;
    let small = scale.text(13).color(&PALE);
    area.draw(&Text::new(subtitle.to_owned(), (scale.at(14), scale.at(38)), small))?;
    let (width, _) = area.dim_in_pixel();
    let width = i32::try_from(width).expect("a figure is a few thousand pixels wide");
    let legend = width - scale.at(236);
    let (left, _) = area.split_horizontally(legend);
    let (_, chart) = left.split_vertically(scale.at(62));
    let mut y = scale.at(78);
    for (index, policy) in policies.iter().enumerate() {
        let x = legend + scale.at(10);
        let style = COLOURS[index % COLOURS.len()].stroke_width(scale.px(2));
        area.draw(&PathElement::new([(x, y), (x + scale.at(22), y)], style))?;
        let mut name: String = policy.chars().take(NAME_MAX).collect();
        if policy.chars().nth(NAME_MAX).is_some() {
            name.push('…');
        }
        area.draw(&Text::new(name, (x + scale.at(30), y - scale.at(7)), scale.text(13)))?;
        y += scale.at(21);
    }
    Ok(chart)
}

fn line<DB, X>(
    chart: &mut Chart<'_, DB, X>,
    scale: Scale,
    policy: usize,
    points: Vec<Point>,
) -> Result<(), Failure>
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
    X: Ranged<ValueType = f64>,
{
    let style = COLOURS[policy % COLOURS.len()].stroke_width(scale.px(2));
    // Each piece by itself: joined ones grow spikes where a line turns back sharply.
    chart.draw_series(points.windows(2).map(|pair| PathElement::new(pair.to_vec(), style)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{Rates, Tally};

    #[test]
    fn a_distribution_climbs_from_nothing_to_all_and_equal_rates_are_one_step() {
        let points = cumulative(vec![2.0, 1.0, 2.0, 4.0], 0.5..5.0);
        let expected = [
            (0.5, 0.0),
            (1.0, 0.0),
            (1.0, 25.0),
            (2.0, 25.0),
            (2.0, 50.0),
            (2.0, 50.0),
            (2.0, 75.0),
            (4.0, 75.0),
            (4.0, 100.0),
            (5.0, 100.0),
        ];
        assert_eq!(points, expected);
    }

    #[test]
    fn figures_name_the_policies_and_the_agent_and_a_single_rate_is_no_trouble() {
        let folder = std::env::temp_dir().join(format!("merit-plot-{}", std::process::id()));
        let agent = |id: &str, end: f64| {
            let rates = Rates { end, least: end, largest: end };
            Agent {
                id: id.parse().unwrap(),
                number: 0,
                tally: Tally::default(),
                rates: vec![rates; 2],
            }
        };
        let way = Way {
            agent: "a".to_owned(),
            at: vec![1e12, 1.1e12],
            rates: vec![vec![20.0, 21.0], vec![20.0, 40.0]],
            timed: true,
        };
        for agents in [vec![agent("a", 3.0)], vec![agent("a", 3.0), agent("b", 30.0)]] {
            let files = draw(&folder, &["one", "another"], &agents, Some(&way)).unwrap();
            assert_eq!(files.len(), 4);
        }
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert!(text("rates.svg").contains("share of 2 agents"));
        for said in ["differs most: a", "another", "2001-09-09"] {
            assert!(text("mover.svg").contains(said), "{said}");
        }
        assert!(fs::read(folder.join("mover.png")).unwrap().starts_with(b"\x89PNG\r\n"));
        fs::remove_dir_all(folder).unwrap();
    }
}
