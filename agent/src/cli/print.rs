//! What goes to standard output: tables in plain ASCII, JSON with the wire's field names.
//!
//! Text that comes from a workload (commands, paths) is shown with its control characters escaped, so that it cannot
//! act on the terminal. A reader that closes the pipe early is no failure.

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    ops::ControlFlow,
    time::Duration,
};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;

use super::exit::{Exit, Failure};
use crate::{api::wire::Control, duration};

/// Characters of a command that a terminal is shown.
const COMMAND: usize = 60;
/// Digits of a session's id in a table; the whole id is in the JSON.
const ID: usize = 12;

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    #[value(alias = "jsonl")]
    Json,
}

/// Writes to standard output; breaks when nobody reads any more.
pub(super) fn out(text: &str) -> Result<ControlFlow<()>, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(Failure::new(Exit::Failed, format!("cannot write to standard output: {error}"))),
    }
}

/// Prints a value as JSON, or as the text that `table` makes of it.
pub(super) fn show<T: Serialize>(output: Output, value: &T, table: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    let text = match output {
        Output::Table => table(value),
        Output::Json => {
            let json = serde_json::to_string_pretty(value);
            json.map_err(|error| Failure::new(Exit::Failed, format!("cannot write this as JSON: {error}")))? + "\n"
        }
    };
    out(&text).map(|_| ())
}

/// A table with a header; the named columns hold numbers. No line has blanks at its end.
pub(super) fn table<const N: usize>(header: [&str; N], numbers: &[usize], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for &number in numbers {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Pairs of a name and what it is, one a line, aligned.
pub(super) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    pairs.iter().map(|(name, value)| format!("{name:width$}{value}").trim_end().to_owned() + "\n").collect()
}

/// The controls, each with its state and why.
pub(super) fn controls(controls: &[Control]) -> String {
    let row =
        |control: &Control| [printable(&control.control), control.state.as_str().to_owned(), printable(&control.why)];
    table(["CONTROL", "STATE", "WHY"], &[], controls.iter().map(row).collect())
}

/// The text with everything escaped that could act on a terminal: control characters and changes of direction.
pub(super) fn printable(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// A command as a shell would take it; `limit` is in characters.
pub(super) fn command(argv: &[String], limit: Option<usize>) -> String {
    let plain = |c: char| c.is_alphanumeric() || "%+,-./:=@_".contains(c);
    let word = |word: &String| match printable(word) {
        shown if !shown.is_empty() && shown.chars().all(plain) => shown,
        shown => format!("'{}'", shown.replace('\'', r"'\''")),
    };
    let line = argv.iter().map(word).collect::<Vec<_>>().join(" ");
    match limit.and_then(|limit| line.char_indices().nth(limit)) {
        Some((cut, _)) => format!("{}...", &line[..cut]),
        None => line,
    }
}

/// How much of a command to show: a terminal gets what fits, a program everything.
pub(super) fn command_limit() -> Option<usize> {
    io::stdout().is_terminal().then_some(COMMAND)
}

/// A session's id, shortened.
pub(super) fn short_id(id: &str) -> String {
    printable(id.get(..ID).unwrap_or(id))
}

/// A time span without what nobody wants to read: whole seconds above a second.
pub(super) fn span(milliseconds: u64) -> String {
    let shown = if milliseconds < 1000 { milliseconds } else { milliseconds / 1000 * 1000 };
    duration::format(Duration::from_millis(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_no_line_ends_in_blanks() {
        let rows = vec![
            ["a".to_owned(), "7".to_owned(), String::new()],
            ["long name".to_owned(), "1234".to_owned(), "why not".to_owned()],
        ];
        let text = table(["NAME", "COUNT", "WHY"], &[1], rows);
        assert_eq!(text, "NAME       COUNT  WHY\na              7\nlong name   1234  why not\n");
    }

    #[test]
    fn a_table_without_rows_is_its_header() {
        assert_eq!(table(["A", "B"], &[], Vec::new()), "A  B\n");
    }

    #[test]
    fn what_could_act_on_a_terminal_is_escaped_and_the_rest_is_not() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{9b}d\u{202e}e"), r"a\u{1b}[2Jb\nc\u{9b}d\u{202e}e");
        assert_eq!(printable("/home/zoë/日本 x"), "/home/zoë/日本 x");
    }

    #[test]
    fn a_command_is_quoted_where_a_shell_needs_it_and_cut_where_it_is_too_long() {
        let argv = ["sh", "-c", "echo 'a' > b", ""].map(str::to_owned);
        assert_eq!(command(&argv, None), r"sh -c 'echo '\''a'\'' > b' ''");
        assert_eq!(command(&argv, Some(5)), "sh -c...");
        assert_eq!(command(&argv[..2], Some(5)), "sh -c");
    }

    #[test]
    fn spans_are_in_whole_seconds_above_one() {
        assert_eq!([0, 450, 4500, 3_723_999].map(span), ["0s", "450ms", "4s", "1h2m3s"]);
    }

    #[test]
    fn fields_are_aligned() {
        assert_eq!(fields(&[("id", "x".to_owned()), ("policy", String::new())]), "id      x\npolicy\n");
    }
}
