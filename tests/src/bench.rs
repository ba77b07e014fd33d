//! Benchmarks: ours and the peer alternate in one run, medians are compared, the table is printed and
//! written to `target/bench/NAME.json`. A benchmark reports; it never fails for being slow.

use std::borrow::Cow;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub figure: String,
    pub unit: Cow<'static, str>,
    pub ours: f64,
    /// The program we are compared with, where there is one.
    pub peer: Option<String>,
    pub peer_value: Option<f64>,
    /// Ours over the peer's.
    pub ratio: Option<f64>,
    /// What was aimed at, in words.
    pub aim: String,
    pub aim_met: bool,
}

impl Row {
    /// A figure without a peer, met when at most `aim`.
    #[must_use]
    pub fn alone(figure: &str, unit: &'static str, ours: f64, aim: f64) -> Self {
        Self {
            figure: figure.to_owned(),
            unit: unit.into(),
            ours,
            peer: None,
            peer_value: None,
            ratio: None,
            aim: format!("<= {aim} {unit}"),
            aim_met: ours <= aim,
        }
    }

    /// A figure without a peer, met when at least `aim`.
    #[must_use]
    pub fn at_least(figure: &str, unit: &'static str, ours: f64, aim: f64) -> Self {
        let aim_met = ours >= aim;
        Self { aim: format!(">= {aim} {unit}"), aim_met, ..Self::alone(figure, unit, ours, aim) }
    }

    /// What a part of another figure takes; nothing is aimed at.
    #[must_use]
    pub fn part(figure: &str, unit: &'static str, value: f64) -> Self {
        Self {
            aim: "none: part of the above".to_owned(),
            aim_met: true,
            ..Self::alone(figure, unit, value, value)
        }
    }

    /// A figure beside a peer's, met when ours is at most `times` the peer's.
    #[must_use]
    pub fn against(figure: &str, unit: &'static str, ours: f64, peer: &str, value: f64, times: f64) -> Self {
        let ratio = ours / value;
        Self {
            figure: figure.to_owned(),
            unit: unit.into(),
            ours,
            peer: Some(peer.to_owned()),
            peer_value: Some(value),
            ratio: Some(ratio),
            aim: format!("<= {times} x {peer}"),
            aim_met: ratio <= times,
        }
    }
}

/// The median of the values; 0 of none.
#[must_use]
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// How long it took, in milliseconds.
///
/// # Errors
/// As `run`.
pub fn milliseconds(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    run()?;
    Ok(in_milliseconds(begin.elapsed()))
}

/// A duration in milliseconds.
#[must_use]
pub fn in_milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Prints the table and writes it to `target/bench/NAME.json`.
///
/// # Errors
/// When the file cannot be written.
pub fn report(name: &str, rows: &[Row]) -> Result<()> {
    println!(
        "\n{:<52} {:>10} {:<4} {:>12} {:>10} {:>7}  aim",
        "figure", "ours", "unit", "peer", "its value", "ratio"
    );
    for row in rows {
        println!(
            "{:<52} {:>10.2} {:<4} {:>12} {:>10} {:>7}  {} {}",
            row.figure,
            row.ours,
            row.unit,
            row.peer.as_deref().unwrap_or("-"),
            row.peer_value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}")),
            row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            row.aim,
            if row.aim_met { "(met)" } else { "(MISSED)" },
        );
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec_pretty(rows)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_knows_whether_its_aim_was_met() {
        assert!(Row::alone("x", "ms", 1.0, 1.0).aim_met);
        assert!(!Row::alone("x", "ms", 1.1, 1.0).aim_met);
        assert!(Row::at_least("x", "1/s", 1.0, 1.0).aim_met && !Row::at_least("x", "1/s", 0.9, 1.0).aim_met);
        let row = Row::against("x", "ms", 5.0, "runc", 10.0, 0.5);
        assert!(row.aim_met && row.ratio == Some(0.5));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut []), 0.0);
    }
}
