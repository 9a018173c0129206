//! Time against size, on logarithmic axes, as SVG.

use std::error::Error;
use std::ops::Range;

use plotters::prelude::*;

use super::report::Row;

const SIZE: (u32, u32) = (960, 600);

/// Told apart also by those who do not see red and green.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 90, 170),
    RGBColor(90, 90, 90),
    RGBColor(213, 94, 0),
    RGBColor(0, 140, 100),
    RGBColor(170, 70, 140),
    RGBColor(190, 150, 0),
];

/// A name and points.
pub(crate) type Line = (String, Vec<(f64, f64)>);

/// An axis: what it shows, and how its numbers are written.
pub(crate) type Axis = (&'static str, fn(f64) -> String);

fn lines(rows: &[Row]) -> Vec<Line> {
    let line = |name: &str, of: &dyn Fn(&Row) -> Option<f64>| {
        let points = rows.iter().filter_map(|row| Some((row.bytes as f64, of(row)?)));
        (name.to_owned(), points.filter(|&(bytes, us)| bytes > 0.0 && us > 0.0).collect::<Vec<_>>())
    };
    let mut lines = vec![line("windlass", &|row| Some(row.median_us)), line("limit", &|row| row.limit_us)];
    if let Some(first) = rows.first() {
        for peer in first.peers.keys() {
            lines.push(line(peer, &|row| row.peers.get(peer).copied().flatten()));
        }
    }
    lines.retain(|(_, points)| !points.is_empty());
    lines
}

/// The drawing's text.
pub(super) fn plot(rows: &[Row]) -> Result<String, Box<dyn Error>> {
    let title = rows.first().map_or_else(String::new, |row| {
        format!(
            "{} of {} on {} ranks, {}, {} memory: median time",
            row.collective, row.dtype, row.ranks, row.transport, row.memory
        )
    });
    draw(title, ("bytes", bytes_label), ("microseconds", us_label), &lines(rows))
}

/// Lines on logarithmic axes.
pub(crate) fn draw(title: String, x: Axis, y: Axis, lines: &[Line]) -> Result<String, Box<dyn Error>> {
    if lines.is_empty() {
        return Err("there is nothing with a size to draw".into());
    }
    let all = || lines.iter().flat_map(|(_, points)| points);
    let range = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let (low, high) =
            all().map(of).fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
        low / 1.5..high * 1.5
    };
    let sizes = range(&|p| p.0);
    // Grid lines where sizes are round, and not too many.
    let base = match (sizes.end / sizes.start).log2() {
        ..10.0 => 2.0,
        ..18.0 => 4.0,
        _ => 8.0,
    };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(52)
            .y_label_area_size(76)
            .build_cartesian_2d(sizes.clone().log_scale().base(base), range(&|p| p.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(x.0)
            .y_desc(y.0)
            .x_label_formatter(&|value| x.1(*value))
            .y_label_formatter(&|value| y.1(*value))
            .label_style(("sans-serif", 14))
            .light_line_style(RGBColor(238, 238, 238))
            .bold_line_style(RGBColor(210, 210, 210))
            .draw()?;
        for ((name, points), &colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style));
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(emptiest(&sizes, &range(&|p| p.1), lines))
            .background_style(WHITE)
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 15))
            .margin(10)
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// Where the legend hides the fewest points.
fn emptiest(x: &Range<f64>, y: &Range<f64>, lines: &[Line]) -> SeriesLabelPosition {
    let place = |value: f64, range: &Range<f64>| (value / range.start).ln() / (range.end / range.start).ln();
    let hidden = |left: bool, height: f64| {
        let points = lines.iter().flat_map(|(_, points)| points);
        let within = |point: &&(f64, f64)| {
            let (x, y) = (place(point.0, x), place(point.1, y));
            (if left { x < 0.35 } else { x > 0.65 }) && (y - height).abs() < 0.2
        };
        points.filter(within).count()
    };
    let corners = [
        (SeriesLabelPosition::UpperLeft, hidden(true, 0.85)),
        (SeriesLabelPosition::LowerRight, hidden(false, 0.15)),
        (SeriesLabelPosition::MiddleRight, hidden(false, 0.5)),
        (SeriesLabelPosition::MiddleLeft, hidden(true, 0.5)),
    ];
    let best = corners.into_iter().min_by_key(|(_, hidden)| *hidden);
    best.map_or(SeriesLabelPosition::UpperLeft, |(position, _)| position)
}

pub(crate) fn bytes_label(bytes: f64) -> String {
    let units = [(f64::from(1 << 30), " GiB"), (f64::from(1 << 20), " MiB"), (1024.0, " KiB"), (0.0, " B")];
    let (unit, name) = units.into_iter().find(|(unit, _)| bytes >= *unit).unwrap_or((1.0, " B"));
    let value = bytes / unit.max(1.0);
    if value >= 10.0 || value.fract() < 0.05 {
        format!("{value:.0}{name}")
    } else {
        format!("{value:.1}{name}")
    }
}

pub(crate) fn us_label(us: f64) -> String {
    if us >= 1.0 { format!("{us:.0}") } else { format!("{us}") }
}
