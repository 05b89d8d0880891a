//! Hostile and damaged texts: never a panic, always a policy or a problem with a place.

use proptest::prelude::*;

use super::EXAMPLE;
use crate::policy::{Resolved, compile, parse};

fn judge(bytes: &[u8]) {
    match parse("p.yaml", bytes) {
        Ok(policy) => drop(compile(&policy, &Resolved::default())),
        Err(problems) => {
            assert!(!problems.is_empty());
            assert!(problems.iter().all(|p| p.line >= 1 && p.column >= 1 && !p.message.is_empty()));
        }
    }
}

/// What YAML is made of, so that random texts reach more of the parser than random bytes do.
fn fragment() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        ": ",
        "- ",
        "\n",
        "  ",
        "? ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\"",
        "'",
        "|",
        ">",
        "&a ",
        "*a",
        "!!str ",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "# c\n",
        "\t",
        "\r",
        "\u{feff}",
        "kind",
        "spec",
        "a",
        "0",
        "~",
        "ä",
        "\\x41",
        "\u{2028}",
        "<<: ",
        "|+2\n",
        "!<tag:x> ",
        "\0",
    ];
    prop_oneof![prop::sample::select(PIECES).prop_map(str::to_owned), any::<char>().prop_map(String::from)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        judge(&bytes);
    }

    #[test]
    fn random_yaml(pieces in prop::collection::vec(fragment(), 0..60)) {
        judge(pieces.concat().as_bytes());
    }

    #[test]
    fn damaged_policies(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..6, fragment()), 1..5),
    ) {
        let mut text = EXAMPLE.as_bytes().to_vec();
        for (at, removed, added) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + removed).min(text.len());
            text.splice(at..end, added.bytes());
        }
        judge(&text);
    }

    #[test]
    fn cut_policies(length in 0..EXAMPLE.len()) {
        judge(&EXAMPLE.as_bytes()[..length]);
    }
}
