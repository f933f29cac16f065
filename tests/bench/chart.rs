//! The chart of the medians: a panel for each of the main figures, a bar for each rival.

use crate::Rival;
use crate::report::Results;
use anyhow::Result;
use plotters::prelude::*;
use std::path::Path;

/// The panels: a figure's name, its title, and the factor to its unit there.
const PANELS: [(&str, &str, f64); 8] = [
    ("out_mib_per_s", "bulk out, MiB/s", 1.0),
    ("in_mib_per_s", "bulk in, MiB/s", 1.0),
    ("round_trip_us", "round trip of 64 bytes, ms", 1e-3),
    ("requests_of_64_per_s", "requests/s, 64 connections", 1.0),
    ("out_guest_cpu_s_per_gib", "guest CPU per GiB out, s", 1.0),
    ("out_dom0_cpu_s_per_gib", "dom0 CPU per GiB out, s", 1.0),
    ("connection_us", "connect, 64 bytes, close, ms", 1e-3),
    ("boot_ms", "xl unpause to the first byte, s", 1e-3),
];
const COLUMNS: usize = 4;
const PANEL: (u32, u32) = (320, 260);

const COLOURS: [RGBColor; 6] = [
    RGBColor(11, 110, 95),
    RGBColor(55, 140, 190),
    RGBColor(95, 170, 150),
    RGBColor(190, 110, 40),
    RGBColor(120, 130, 145),
    RGBColor(130, 90, 160),
];

/// Draws the chart as an SVG file.
pub fn draw(results: &Results, to: &Path) -> Result<()> {
    let rows = PANELS.len().div_ceil(COLUMNS);
    let size = (PANEL.0 * COLUMNS as u32, PANEL.1 * rows as u32);
    let area = SVGBackend::new(to, size).into_drawing_area();
    area.fill(&WHITE)?;
    for (panel, (name, title, factor)) in area.split_evenly((rows, COLUMNS)).iter().zip(PANELS) {
        let value = |rival: Rival| Some(results.get(rival.name())?.get(name)? * factor);
        let values = Rival::ALL.map(value);
        let top = values.iter().flatten().fold(0.0, |top: f64, value| top.max(*value));
        let mut chart = ChartBuilder::on(panel)
            .caption(title, ("sans-serif", 16))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(44)
            .build_cartesian_2d(
                (0..Rival::ALL.len() - 1).into_segmented(),
                0.0..top.max(1e-9) * 1.1,
            )?;
        let label = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(at) => Rival::ALL[*at].name().to_owned(),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(1)
            .x_labels(Rival::ALL.len())
            .x_label_formatter(&label)
            .x_label_style(("sans-serif", 10))
            .y_labels(6)
            .draw()?;
        let bars = values.iter().zip(COLOURS).enumerate().filter_map(|(at, (value, colour))| {
            let corners =
                [(SegmentValue::Exact(at), 0.0), (SegmentValue::Exact(at + 1), (*value)?)];
            let mut bar = Rectangle::new(corners, colour.filled());
            bar.set_margin(0, 0, 8, 8);
            Some(bar)
        });
        chart.draw_series(bars)?;
    }
    area.present()?;
    Ok(())
}
