//! How things are shown: tables, sizes, JSON, notes and progress. Results go to stdout, all else to stderr.
//!
//! Colours appear on a terminal only, and not where `NO_COLOR` is set. Nothing here panics when a stream is closed.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Writes a line to stdout.
///
/// # Errors
/// If stdout is closed.
pub fn line(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Writes bytes to stdout at once, for text that streams.
///
/// # Errors
/// If stdout is closed.
pub fn stream(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Writes a value as one line of JSON to stdout.
///
/// # Errors
/// If stdout is closed.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Writes a line to stderr, if anybody reads it.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// As [`note`], dim on a terminal: remarks beside a conversation.
pub fn remark(text: &str) {
    if colours_on_stderr() { note(&format!("\x1b[2m{text}\x1b[0m")) } else { note(text) }
}

/// Whether stderr may be coloured.
pub fn colours_on_stderr() -> bool {
    io::stderr().is_terminal() && no_color_is_unset()
}

/// Text in bold where stdout may be styled.
pub fn bold(text: &str) -> String {
    if io::stdout().is_terminal() && no_color_is_unset() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

fn no_color_is_unset() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes a table to stdout. Columns whose title begins with `>` are aligned to the right.
///
/// # Errors
/// If stdout is closed.
pub fn table(titles: &[&str], rows: &[Vec<String>]) -> Result<()> {
    for (index, row) in layout(titles, rows).iter().enumerate() {
        line(&if index == 0 { bold(row) } else { row.clone() })?;
    }
    Ok(())
}

/// Writes keys and values to stdout, the values below one another.
///
/// # Errors
/// If stdout is closed.
pub fn pairs(rows: &[[String; 2]]) -> Result<()> {
    let width = rows.iter().map(|[key, _]| key.chars().count()).max().unwrap_or(0);
    rows.iter().try_for_each(|[key, value]| line(&format!("{key:<width$}  {value}")))
}

fn layout(titles: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let names: Vec<String> = titles.iter().map(|t| t.trim_start_matches('>').to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&names).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let cell = |column: usize, text: &str| {
        let width = widths[column];
        if titles[column].starts_with('>') { format!("{text:>width$}") } else { format!("{text:<width$}") }
    };
    let join =
        |row: &Vec<String>| row.iter().enumerate().map(|(c, text)| cell(c, text)).collect::<Vec<_>>().join("  ").trim_end().to_owned();
    all.into_iter().map(join).collect()
}

/// Bytes for a reader: `98.4 MB`.
pub fn human_bytes(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Milliseconds with three significant digits or so: `0.412`, `8.31`, `251`.
pub fn human_ms(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{ms:.3}"),
        ms if ms < 100.0 => format!("{ms:.2}"),
        ms => format!("{ms:.0}"),
    }
}

/// A bar over bytes on stderr; hidden where stderr is no terminal.
pub fn bytes_bar(total_bytes: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(total_bytes).with_message(what.to_owned());
    bar.set_style(style("{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}"));
    bar
}

/// A bar over steps on stderr; hidden where stderr is no terminal.
pub fn steps_bar(steps: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_message(what.to_owned());
    bar.set_style(style("{msg} [{bar:30}] {pos}/{len} {eta}"));
    bar
}

/// Something that turns on stderr while `work` runs; hidden where stderr is no terminal.
pub fn spinning<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let done = work();
    spinner.finish_and_clear();
    done
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let cases =
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_362_432, "98.4 MB"), (999_960_000, "1.0 GB"), (u64::MAX, "18446744.1 TB")];
        for (bytes, expected) in cases {
            assert_eq!(human_bytes(bytes), expected);
        }
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["a".into(), "1".into()], vec!["longer".into(), "1000".into()]];
        assert_eq!(layout(&["name", ">bytes"], &rows), ["name    bytes", "a           1", "longer   1000"]);
    }
}
