//! Loss and accuracy over the steps, as a picture.

use std::error::Error;

use plotters::prelude::*;

use crate::train::History;

const SIZE: (u32, u32) = (960, 540);
/// Told apart also by those who do not see red and green, and readable on white as on black: nothing is drawn behind them.
const LOSS: RGBColor = RGBColor(213, 94, 0);
const RIGHT: RGBColor = RGBColor(30, 130, 210);
const INK: RGBColor = RGBColor(128, 128, 128);

/// Points of a curve.
type Points = Vec<(f64, f64)>;

/// Loss to the left, accuracy to the right; thin what each batch gave, thick the images held out.
pub(crate) fn draw(title: &str, history: &History) -> Result<String, Box<dyn Error>> {
    let count = history.steps.len();
    let steps = |of: fn(f32, f32) -> f32| -> Points {
        (0..)
            .zip(&history.steps)
            .map(|(at, score)| (f64::from(at), of(score.loss, score.right).into()))
            .collect()
    };
    let epochs = |of: fn(f32, f32) -> f32| -> Points {
        let each = count / history.epochs.len().max(1);
        (1..)
            .zip(&history.epochs)
            .map(|(n, (_, score))| ((n * each) as f64, of(score.loss, score.right).into()))
            .collect()
    };
    let (loss, right) = (|loss, _| loss, |_, right| 100.0 * right);
    let losses = [steps(loss), epochs(loss)];
    let most = losses.iter().flatten().fold(0.1, |most: f64, point| most.max(point.1));
    let text = |size: i32| ("sans-serif", size).into_font().color(&INK);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .caption(title, text(20))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .right_y_label_area_size(64)
            .build_cartesian_2d(0.0..count as f64, 0.0..most * 1.05)?
            .set_secondary_coord(0.0..count as f64, 0.0..105.0);
        chart
            .configure_mesh()
            .x_desc("steps")
            .y_desc("loss")
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|loss| format!("{loss:.1}"))
            .label_style(text(15))
            .axis_style(INK)
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.25))
            .draw()?;
        chart
            .configure_secondary_axes()
            .y_desc("recognised, %")
            .y_label_formatter(&|percent| format!("{percent:.0}"))
            .label_style(text(15))
            .axis_style(INK)
            .draw()?;
        let legend = |style: ShapeStyle| move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style);
        let [each, held_out] = losses;
        let (thin, thick) =
            (|colour: RGBColor| colour.mix(0.6).stroke_width(1), |colour: RGBColor| colour.stroke_width(3));
        chart
            .draw_series(LineSeries::new(each, thin(LOSS)))?
            .label("loss, of a batch")
            .legend(legend(thin(LOSS)));
        chart
            .draw_series(LineSeries::new(held_out, thick(LOSS)).point_size(4))?
            .label("loss, held out")
            .legend(legend(thick(LOSS)));
        chart
            .draw_secondary_series(LineSeries::new(steps(right), thin(RIGHT)))?
            .label("recognised, of a batch")
            .legend(legend(thin(RIGHT)));
        chart
            .draw_secondary_series(LineSeries::new(epochs(right), thick(RIGHT)).point_size(4))?
            .label("recognised, held out")
            .legend(legend(thick(RIGHT)));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .label_font(text(15))
            .border_style(INK.mix(0.5))
            .margin(10)
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}
