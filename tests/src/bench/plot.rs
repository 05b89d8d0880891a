//! The measured values as pictures: a file for each benchmark, of bars on a logarithmic axis. What is compared begins at
//! "without" and ends at what it takes with it; of trials the bar goes from the median to the 99th percentile.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

use super::{
    report::{Figures, Row, plain, signed},
    stats::{least, most, quantile},
};

/// Sizes in pixels: the names, the bars, the values beside them, a line.
const NAMES: f64 = 330.0;
const BARS: f64 = 300.0;
const VALUES: f64 = 190.0;
const LINE: f64 = 18.0;
/// Above the first and below the last line.
const EDGE: f64 = 34.0;

/// A bar, and a mark on or beside it.
struct Bar {
    name: String,
    from: f64,
    to: f64,
    mark: Option<f64>,
    value: String,
}

/// Writes `<benchmark>.svg` into `folder` for each benchmark that has something to show.
pub(super) fn write(folder: &Path, rows: &[Row]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let mut names: Vec<&str> = rows.iter().map(|row| row.bench).collect();
    names.dedup();
    for name in names {
        let bars: Vec<Bar> = rows.iter().filter(|row| row.bench == name).filter_map(bar).collect();
        if let Some(text) = picture(&bars, axis(rows, name)) {
            let path = folder.join(format!("{name}.svg"));
            fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        }
    }
    Ok(())
}

/// What the axis of a benchmark shows.
fn axis<'a>(rows: &'a [Row], name: &str) -> &'a str {
    let trials = |row: &&Row| row.bench == name && matches!(row.figures, Figures::Spread(_));
    rows.iter().find(trials).map_or("times without", |row| row.unit)
}

fn bar(row: &Row) -> Option<Bar> {
    let name = row.what.clone();
    match &row.figures {
        Figures::Compared { off, on, floor } => {
            let base = least(off);
            let to = least(on) / base;
            let value = format!("{} × ({} {})", plain(to), signed(least(on) - base), row.unit);
            // what is faster with it is noise, and no bar
            Some(Bar { name, from: 1.0, to: to.max(1.0), mark: floor.as_ref().map(|all| least(all) / base), value })
        }
        Figures::Spread(values) => {
            let (half, nearly, top) = (quantile(values, 0.5), quantile(values, 0.99), most(values));
            let value = format!("{} / {} / {} {}", plain(half), plain(nearly), plain(top), row.unit);
            Some(Bar { name, from: half, to: nearly, mark: Some(top), value })
        }
        Figures::Single(_) | Figures::Exact { .. } => None,
    }
}

fn picture(bars: &[Bar], axis: &str) -> Option<String> {
    let ends = || bars.iter().flat_map(|bar| [Some(bar.from), Some(bar.to), bar.mark]).flatten().filter(|x| *x > 0.0);
    let (low, high) = (ends().fold(f64::INFINITY, f64::min), ends().fold(f64::NEG_INFINITY, f64::max));
    if bars.is_empty() || !low.is_finite() {
        return None;
    }
    let (low, high) = (low.min(high / 1.5) / 1.05, high * 1.05);
    let at = |value: f64| NAMES + BARS * ((value.max(low) / low).ln() / (high / low).ln());
    let (width, height) = (NAMES + BARS + VALUES, 2.0 * EDGE + LINE * bars.len() as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for tick in ticks(low, high) {
        let x = at(tick);
        let (top, bottom) = (EDGE - 6.0, height - EDGE + 4.0);
        // a string takes everything
        let _ = writeln!(svg, "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#ddd\"/>");
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>", bottom + 13.0);
    }
    let _ = writeln!(svg, "<text x=\"{NAMES}\" y=\"{}\" fill=\"#555\">{}</text>", EDGE - 14.0, escape(axis));
    for (line, bar) in bars.iter().enumerate() {
        let y = EDGE + LINE * line as f64;
        let (text, left) = (y + 12.0, at(bar.from));
        let (length, end) = ((at(bar.to) - left).max(1.0), NAMES - 8.0);
        let name = escape(&bar.name);
        let _ = writeln!(svg, "<text x=\"{end}\" y=\"{text}\" text-anchor=\"end\">{name}</text>");
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{}\" width=\"{length:.1}\" height=\"11\" fill=\"#4a6fa5\"/>",
            y + 3.0
        );
        if let Some(mark) = bar.mark.filter(|mark| *mark >= low) {
            let _ = writeln!(
                svg,
                "<path d=\"M{:.1} {y}v{}\" stroke=\"#c0392b\" stroke-width=\"2\"/>",
                at(mark),
                LINE - 1.0
            );
        }
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{text}\">{}</text>", NAMES + BARS + 10.0, escape(&bar.value));
    }
    Some(svg + "</svg>\n")
}

/// 1, 2, 5, 10 and so on between both ends, at most eight of them; where they lie too near each other, powers of ten.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let all = |steps: &[f64]| -> Vec<f64> {
        let tens = (-6..9).map(|power| 10_f64.powi(power));
        let all = tens.flat_map(|ten| steps.iter().map(move |step| (step * ten * 1e6).round() / 1e6));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let fine = all(&[1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0]);
    let middle = all(&[1.0, 2.0, 5.0]);
    match (fine.len(), middle.len()) {
        (..=8, _) => fine,
        (_, ..=8) => middle,
        _ => all(&[1.0]),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bench: &'static str, figures: Figures) -> Row {
        Row { bench, what: "a < b".into(), unit: "ns", target: None, figures }
    }

    #[test]
    fn what_is_compared_and_what_was_tried_are_bars() {
        let compared = Figures::Compared { off: vec![100.0], on: vec![250.0], floor: Some(vec![150.0]) };
        let bars = [row("net", compared), row("kill", Figures::Spread(vec![1.0, 2.0, 40.0]))].map(|row| bar(&row));
        let [Some(net), Some(kill)] = bars else { panic!("both have a bar") };
        assert_eq!((net.from, net.to, net.mark), (1.0, 2.5, Some(1.5)));
        assert_eq!((kill.from, kill.to, kill.mark), (2.0, 40.0, Some(40.0)));
        assert!(bar(&row("start", Figures::Single(1.0))).is_none());
        let svg = picture(&[net], "times without").expect("it has a bar");
        assert!(svg.contains("a &lt; b") && svg.contains("2.50 × (+150 ns)") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(picture(&[], "").is_none());
    }

    #[test]
    fn ticks_are_few_and_within_the_axis() {
        for (low, high) in [(0.9, 1.4), (0.9, 12.0), (0.01, 90_000.0)] {
            let ticks = ticks(low, high);
            assert!((1..=8).contains(&ticks.len()) && ticks.iter().all(|t| (low..=high).contains(t)), "{ticks:?}");
        }
    }
}
