//! The three figures: utility over time, one agent through a change, the distribution of rates.

use std::ops::Range;

use plotters::{
    coord::{
        Shift,
        ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
    },
    element::EmptyElement,
    prelude::{
        DashedLineSeries, DrawingArea, DrawingBackend, IntoLogRange, LineSeries, PathElement, Text,
    },
    style::Color,
};

use super::Drawn;
use crate::figure::{
    self, Failure,
    axes::{Chart, Labels, Number},
    style::{DASH, PALE, SOFT, Scale, Stroke, frame},
};
use crate::simulate::{
    NEUTRAL, PolicyName, RATE_MAX, RATE_MIN,
    compare::{Figure, Line},
    recovery::windows,
    world::count,
};

/// The most points of a line: more than a figure has pixels across.
const POINTS_MAX: usize = 1200;
/// What of the utility below 0 is shown, as a share of what is above.
const BELOW: f64 = 0.25;
/// Ticks shown before and after a change.
const AROUND: (usize, usize) = (300, 700);

/// What the moment is called at which agents change.
const CHANGE: &str = "agents change";

type Point = (f64, f64);

/// Utility over time of each policy, and of the reference.
pub(super) fn utility<DB>(figure: &Figure, area: &DrawingArea<DB, Shift>, scale: Scale) -> Drawn
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    let curves: Vec<Vec<Point>> = figure.lines.iter().map(|line| smooth(&line.utility)).collect();
    let most = curves.iter().flatten().map(|point| point.1).fold(1.0, f64::max) * 1.08;
    // Whoever is far below is not worth the room, and the legend says so.
    let floor = -BELOW * most;
    let shown = curves.iter().flatten().map(|point| point.1).filter(|utility| *utility >= floor);
    let low = shown.fold(0.0, f64::min) * 1.08;
    let ticks = figure.lines.first().map_or(1, |line| line.utility.len());
    let mut names = legend(&figure.lines);
    for (curve, (name, _)) in curves.iter().zip(&mut names) {
        if curve.iter().all(|point| point.1 < low) {
            name.push_str(" (below)");
        }
    }
    let seeds = figure.seeds;
    let title = format!("Utility over time, regime {}", figure.regime.name);
    let said = format!("{}; mean of {seeds} seeds over 40 ticks", figure.regime.about);
    let chart = frame(area, scale, (&title, &said), &names)?;
    let mut chart = axes(&chart, scale, 0.0..count(ticks), low..most, ("tick", "utility a tick"))?;
    if let Some(change) = figure.change {
        upright(&mut chart, scale, count(change), low..most, CHANGE)?;
    }
    for (curve, (_, stroke)) in curves.iter().zip(names).rev() {
        line(&mut chart, scale, curve, stroke, low..most)?;
    }
    Ok(())
}

/// One agent through a change: its quality and what policies believe of it, and its rates.
pub(super) fn drift<DB>(figure: &Figure, area: &DrawingArea<DB, Shift>, scale: Scale) -> Drawn
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    let change = figure.change.expect("drawn only where agents change");
    let span = change.saturating_sub(AROUND.0)..figure.quality.len().min(change + AROUND.1);
    let ticks = count(span.start)..count(span.end);
    let cut = |values: &[f64]| -> Vec<Point> {
        let values = values.get(span.clone()).unwrap_or_default();
        let at = |n: usize| count(span.start + n);
        // Stairs: a value holds until the next tick.
        let steps = values.iter().enumerate();
        steps.flat_map(|(n, value)| [(at(n), *value), (at(n + 1), *value)]).collect()
    };
    let mut names = legend(&figure.lines);
    "reference (truth)".clone_into(&mut names[0].0);
    let title = format!("One agent whose quality falls, regime {}", figure.regime.name);
    let said = "first seed; above: its quality and what policies believe of it; below: its rate";
    let chart = frame(area, scale, (&title, said), &names)?;
    let (_, height) = chart.dim_in_pixel();
    let half = i32::try_from(height / 2).expect("a figure is a few thousand pixels high");
    let (upper, lower) = chart.split_vertically(half);

    let range = 1.0..5.0;
    let mut chart = axes(&upper, scale, ticks.clone(), range.clone(), ("", "quality"))?;
    upright(&mut chart, scale, count(change), range.clone(), CHANGE)?;
    let neutral = Stroke { colour: PALE, width: 1, dashed: true };
    line(
        &mut chart,
        scale,
        &[(ticks.start, NEUTRAL), (ticks.end, NEUTRAL)],
        neutral,
        range.clone(),
    )?;
    let watched = |line: &Line| line.watched.clone().unwrap_or_default();
    for (of, (_, stroke)) in figure.lines.iter().zip(&names).skip(1).rev() {
        line(&mut chart, scale, &cut(&watched(of).belief), *stroke, range.clone())?;
    }
    let quality = figure.quality.iter().enumerate().map(|(n, quality)| (count(n), *quality));
    let quality: Vec<Point> = quality.filter(|(tick, _)| ticks.contains(tick)).collect();
    line(&mut chart, scale, &quality, Stroke::of(0), range)?;

    let rates: Vec<Vec<Point>> = figure.lines.iter().map(|line| cut(&watched(line).rate)).collect();
    let most = rates.iter().flatten().map(|point| point.1).fold(1.0, f64::max) * 1.05;
    let mut chart = axes(&lower, scale, ticks, 0.0..most, ("tick", "tokens a tick"))?;
    upright(&mut chart, scale, count(change), 0.0..most, "")?;
    for (curve, (_, stroke)) in rates.iter().zip(&names).rev() {
        line(&mut chart, scale, curve, *stroke, 0.0..most)?;
    }
    Ok(())
}

/// How rates are distributed over agents at the end of the run.
pub(super) fn rates<DB>(figure: &Figure, area: &DrawingArea<DB, Shift>, scale: Scale) -> Drawn
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
{
    // The clairvoyant has no rates: it admits request by request.
    let clairvoyant = |line: &Line| line.policy == PolicyName::Clairvoyant;
    let named = legend(&figure.lines).into_iter().zip(&figure.lines);
    let (names, lines): (Vec<_>, Vec<_>) = named.filter(|(_, line)| !clairvoyant(line)).unzip();
    let seeds = figure.seeds;
    let title = format!("Rates at the end, regime {}", figure.regime.name);
    let said = format!(
        "share of agents with at most that rate, all agents of {seeds} seeds; {}",
        figure.regime.about
    );
    let chart = frame(area, scale, (&title, &said), &names)?;
    let span = (RATE_MIN * 0.9..RATE_MAX * 1.1).log_scale().base(2.0);
    let text = ("tokens a tick (each step doubles)", "share of agents, %");
    let mut chart = axes(&chart, scale, span, 0.0..105.0, text)?;
    for (of, (_, stroke)) in lines.iter().zip(names).rev() {
        line(&mut chart, scale, &cumulative(&of.rates), stroke, 0.0..105.0)?;
    }
    Ok(())
}

fn legend(lines: &[Line]) -> Vec<(String, Stroke)> {
    lines.iter().enumerate().map(|(n, line)| (line.policy.to_string(), Stroke::of(n))).collect()
}

/// Returns the moving mean of `values` at a number of points that can be seen.
fn smooth(values: &[f64]) -> Vec<Point> {
    let sums = windows(values);
    let window = values.len() + 1 - sums.len();
    let every = sums.len().div_ceil(POINTS_MAX).max(1);
    let middle = count(window) / 2.0;
    let points = sums.iter().enumerate().step_by(every);
    points.map(|(n, sum)| (count(n) + middle, sum / count(window))).collect()
}

/// Returns the steps of the cumulative distribution of `values`, in per cent.
fn cumulative(values: &[f64]) -> Vec<Point> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let share = |n: usize| 100.0 * count(n) / count(sorted.len());
    let mut points = vec![(RATE_MIN * 0.9, 0.0)];
    for (n, value) in sorted.iter().enumerate() {
        // Equal values are one step.
        if sorted.get(n + 1) != Some(value) {
            let (_, below) = points[points.len() - 1];
            points.extend([(*value, below), (*value, share(n + 1))]);
        }
    }
    points.push((RATE_MAX * 1.1, 100.0));
    points
}

fn axes<'a, DB, X>(
    area: &'a DrawingArea<DB, Shift>,
    scale: Scale,
    x: X,
    y: Range<f64>,
    (below, beside): (&str, &str),
) -> Result<Chart<'a, DB, X::CoordDescType>, Failure>
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let number = |value: &f64| format!("{value}");
    let numbers: (Number<'_>, Number<'_>) = (&number, &number);
    let labels = Labels { below, beside, numbers, count: 10, right: 8 };
    figure::axes::axes(area, scale, (x, y), &labels)
}

/// Draws the moment at which agents change.
fn upright<DB, X>(
    chart: &mut Chart<'_, DB, X>,
    scale: Scale,
    at: f64,
    range: Range<f64>,
    name: &'static str,
) -> Drawn
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
    X: Ranged<ValueType = f64>,
{
    let style = PALE.stroke_width(scale.px(1));
    chart.draw_series([PathElement::new([(at, range.start), (at, range.end)], style)])?;
    let top = (at, range.end);
    let style = scale.text(12).color(&SOFT);
    let text = Text::new(name, (scale.at(6), scale.at(2)), style);
    chart.draw_series([EmptyElement::at(top) + text])?;
    Ok(())
}

/// Draws a line where it is within `range`.
fn line<DB, X>(
    chart: &mut Chart<'_, DB, X>,
    scale: Scale,
    points: &[Point],
    stroke: Stroke,
    range: Range<f64>,
) -> Drawn
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
    X: Ranged<ValueType = f64>,
{
    let style = stroke.style(scale);
    for visible in points.split(|(_, y)| !(range.start..=range.end).contains(y)) {
        let points = visible.iter().copied();
        if stroke.dashed {
            let (on, off) = (scale.px(DASH.0), scale.px(DASH.1));
            chart.draw_series(DashedLineSeries::new(points, on, off, style))?;
        } else {
            chart.draw_series(LineSeries::new(points, style))?;
        }
    }
    Ok(())
}
