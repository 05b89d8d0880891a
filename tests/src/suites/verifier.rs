//! What the kernel's verifier walks through for each of the agent's programs, held against the table in docs/verifier.md: a
//! program that has become dearer is seen before it is refused somewhere, and before every start waits for it.

use std::collections::BTreeMap;

use nix::sys::utsname::uname;
use serde_json::json;

use crate::harness::{
    bpf::{Stats, stats_of},
    prelude::*,
};

pub(super) const TESTS: &[Test] =
    &[Test::sharing("verifier::walks-as-far-as-is-written", WHEREVER, cost).each_kernel()];

/// What was measured when it was last written.
const WRITTEN: &str = include_str!("../../../docs/verifier.md");
/// A kernel's next point release may walk a little further, or less.
const TOLERANCE: u64 = 10;
/// Instructions by which small programs may differ.
const SMALL: u64 = 50;
/// Instructions that a program may make the verifier walk through (`BPF_COMPLEXITY_LIMIT_INSNS`, `include/linux/bpf.h`).
const LIMIT: u64 = 1_000_000;

fn cost(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let release = uname()?.release().to_string_lossy().into_owned();
    let found: BTreeMap<String, u64> =
        stats_of(s.pins())?.into_iter().map(|(name, Stats { verified, .. })| (name, verified)).collect();
    println!("TIPSTAFF-VERIFIER {}", json!({"kernel": release, "tier": s.tier.name(), "programs": found}));
    let column = format!("{}, {}", series(&release), s.tier.name());
    let written = Written::read(WRITTEN);
    let off: Vec<String> = found.iter().filter_map(|(name, now)| written.complaint(name, &column, *now)).collect();
    ensure!(off.is_empty(), "{}; see why, and write docs/verifier.md anew: ./x verifier", off.join(", "));
    written.complete(&column, &found)
}

/// `6.12` of `6.12.95+deb12-amd64`.
fn series(release: &str) -> String {
    release.split(['.', '-']).take(2).collect::<Vec<_>>().join(".")
}

/// The table: program, kernel and tier, instructions.
struct Written(BTreeMap<String, BTreeMap<String, u64>>);

impl Written {
    fn read(text: &str) -> Self {
        let mut lines = text.lines().filter(|line| line.starts_with('|')).map(cells);
        let columns = lines.next().unwrap_or_default();
        let row = |cells: Vec<String>| {
            // the line of sums names no program
            let name = cells.first()?.strip_prefix('`')?.strip_suffix('`')?.to_owned();
            let numbers = columns.iter().zip(&cells).skip(1);
            Some((name, numbers.filter_map(|(column, cell)| Some((column.clone(), cell.parse().ok()?))).collect()))
        };
        Self(lines.skip(1).filter_map(row).collect())
    }

    /// What is wrong with a program. A kernel that has no column may cost what the dearest of the others does.
    fn complaint(&self, name: &str, column: &str, now: u64) -> Option<String> {
        if now == 0 || now > LIMIT {
            return Some(format!("program {name}: the kernel says {now} instructions"));
        }
        let Some(row) = self.0.get(name) else { return Some(format!("program {name} is not in it ({now})")) };
        let near = |written: u64| now.abs_diff(written) <= (written * TOLERANCE / 100).max(SMALL);
        match row.get(column) {
            Some(written) if near(*written) => None,
            Some(written) => Some(format!("program {name}: {now} instructions, {written} are written")),
            None => row.values().max().filter(|most| now > **most && !near(**most)).map(|most| {
                format!("program {name}: {now} instructions, the most that is written of any kernel is {most}")
            }),
        }
    }

    /// Programs that are written down for this kernel and are there no more.
    fn complete(&self, column: &str, found: &BTreeMap<String, u64>) -> Result<()> {
        let gone =
            |(name, row): &(&String, &BTreeMap<String, u64>)| row.contains_key(column) && !found.contains_key(*name);
        let gone: Vec<&String> = self.0.iter().filter(gone).map(|(name, _)| name).collect();
        ensure!(gone.is_empty(), "docs/verifier.md has programs that are not loaded in {column}: {gone:?}");
        Ok(())
    }
}

fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_held_against_its_kernel_or_the_dearest_one() {
        let text = "words\n\n| program | 6.1, full | 6.12, full |\n|---|--:|--:|\n| `a` | 1000 | 2000 |\n| `b` |  | 10 |\n| all | 1 | 2 |\n";
        let written = Written::read(text);
        for (name, column, now, fits) in [
            ("a", "6.1, full", 1100, true),
            ("a", "6.1, full", 1101, false),
            ("a", "6.1, full", 899, false),
            ("a", "7.2, full", 2200, true),
            ("a", "7.2, full", 2201, false),
            ("a", "7.2, full", 5, true),
            ("a", "6.1, full", 0, false),
            ("b", "6.12, full", 60, true),
            ("b", "6.12, full", 61, false),
            ("c", "6.12, full", 1, false),
        ] {
            assert_eq!(written.complaint(name, column, now).is_none(), fits, "{name} {column} {now}");
        }
        let found = BTreeMap::from([("a".to_owned(), 1000)]);
        assert!(written.complete("6.1, full", &found).is_ok() && written.complete("6.12, full", &found).is_err());
        assert_eq!(series("6.12.95+deb12-amd64"), "6.12");
        assert_eq!(series("6.12-rc1"), "6.12");
    }
}
