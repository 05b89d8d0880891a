//! Nothing can be changed, taken out, put in or cut off without notice.

use proptest::{collection::vec, prelude::*};

use super::*;

fn known(head: Head) -> HeadFile {
    HeadFile::Known(head)
}

#[test]
fn what_was_written_is_intact() {
    let (text, head) = text(5);
    let report = checked(text.as_bytes(), known(head));
    assert!(report.is_intact() && report.head_checked, "{report}");
    assert_eq!((report.records, report.damages, report.gaps), (5, 0, 0));
    assert_eq!(report.first.map(|mark| mark.time), Some(at(0).time));
    assert_eq!(report.last.map(|mark| mark.boot_ns), Some(at(4).boot_ns));
    assert!(checked(b"", known(Head::START)).is_intact());
}

#[test]
fn a_change_of_any_byte_is_noticed_even_without_a_head_file() {
    let text = text(3).0.into_bytes();
    for position in 0..text.len() {
        for flip in [0x01, 0x20, 0x80, text[position] ^ b'\n', text[position] ^ b'0', text[position] ^ b' '] {
            let mut changed = text.clone();
            changed[position] ^= flip;
            let report = checked(&changed, HeadFile::NotGiven);
            assert_eq!(report.is_intact(), changed == text, "byte {position} flipped by {flip:#x}: {report}");
        }
    }
}

#[test]
fn a_cut_at_any_byte_is_noticed() {
    let (text, head) = text(3);
    for length in 0..text.len() {
        let cut = &text.as_bytes()[..length];
        let whole = cut.is_empty() || cut.ends_with(b"\n");
        let report = checked(cut, known(head));
        assert!(report.damage_list.iter().any(|damage| matches!(damage, Damage::CutTail { head: 3, .. })), "{report}");
        // without the head file only a cut between two lines goes unnoticed
        assert_eq!(checked(cut, HeadFile::NotGiven).is_intact(), whole, "cut at {length}");
    }
}

#[test]
fn lines_cannot_be_moved() {
    let (text, head) = text(4);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let damage = |order: &[usize]| {
        let changed: String = order.iter().map(|index| lines[*index]).collect();
        checked(changed.as_bytes(), known(head)).damage_list
    };
    assert_eq!(damage(&[0, 1, 2, 3]), []);
    let missing = Damage::BadNumber { line: 2, expected: 2, found: 3 };
    assert_eq!(damage(&[0, 2, 3]), [missing, Damage::BrokenLink { line: 2 }]);
    let first = Damage::BadNumber { line: 1, expected: 1, found: 2 };
    assert_eq!(damage(&[1, 2, 3]), [first, Damage::BrokenLink { line: 1 }]);
    let twice = Damage::BadNumber { line: 3, expected: 3, found: 2 };
    assert_eq!(damage(&[0, 1, 1, 2, 3])[..2], [twice, Damage::BrokenLink { line: 3 }]);
    assert!(!damage(&[0, 2, 1, 3]).is_empty());
    assert_eq!(damage(&[0, 1, 2]), [Damage::CutTail { last: 3, head: 4 }]);
}

#[test]
fn a_record_made_anew_breaks_the_next_link_or_the_head() {
    let (text, head) = text(3);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let before: Record = serde_json::from_str(lines[0]).expect("a record");
    let from = Head { n: 1, hash: before.hash };
    let (forged, _) = chain::seal(from, &origin(), &state(1), at(50)).expect("a record has a form");
    let changed = format!("{}{forged}\n{}", lines[0], lines[2]);
    assert_eq!(checked(changed.as_bytes(), known(head)).damage_list, [Damage::BrokenLink { line: 3 }]);

    let last: Record = serde_json::from_str(lines[1]).expect("a record");
    let (forged, _) = chain::seal(Head { n: 2, hash: last.hash }, &origin(), &state(2), at(50)).expect("a form");
    let changed = format!("{}{}{forged}\n", lines[0], lines[1]);
    assert_eq!(checked(changed.as_bytes(), known(head)).damage_list, [Damage::HeadDiffers { n: 3 }]);
}

#[test]
fn a_missing_or_unreadable_head_file_is_damage_only_where_one_belongs() {
    let (text, _) = text(1);
    assert!(checked(text.as_bytes(), HeadFile::NotGiven).is_intact());
    assert!(checked(b"", HeadFile::Missing).is_intact());
    assert_eq!(checked(text.as_bytes(), HeadFile::Missing).damage_list, [Damage::HeadMissing]);
    let unreadable = HeadFile::Unreadable { why: "empty".to_owned() };
    assert!(!checked(text.as_bytes(), unreadable).is_intact());
}

#[test]
fn gaps_and_losses_are_added_up() {
    let gap = |lost, since| Gap { lost, since, ..Gap::new(GapCause::NotWritten) };
    let since = Mark { time: at(1).time, boot_ns: at(1).boot_ns, boot: "b7f0".to_owned() };
    let bodies = [
        Body::Gap(gap(Some(3), Some(since.clone()))),
        format::session_start(),
        Body::Gap(gap(None, None)),
        format::session_end(),
    ];
    let (mut text, mut head) = (String::new(), Head::START);
    for (n, body) in (2..).zip(&bodies) {
        let (line, next) = chain::seal(head, &origin(), body, at(n)).expect("a record has a form");
        text.push_str(&(line + "\n"));
        head = next;
    }
    let report = checked(text.as_bytes(), known(head));
    assert!(report.is_intact(), "{report}");
    assert_eq!((report.gaps, report.lost_in_gaps, report.lost_in_kernel, report.sessions), (2, 3, 5, 1));
    assert_eq!(report.gap_list[0].since, Some(since));
    assert_eq!(report.gap_list[0].until.time, at(2).time);
    let shown = report.to_string();
    assert!(shown.contains("not-written (3 records)") && shown.contains("an unknown number"), "{shown}");
    assert!(serde_json::to_string(&report).expect("serialises").starts_with(r#"{"verdict":"intact","records":4"#));
}

#[test]
fn lines_are_bounded() {
    let (text, head) = text(1);
    let mut log = text.into_bytes();
    log.extend(std::iter::repeat_n(b'x', 3 * LINE_MAX));
    log.push(b'\n');
    let report = checked(&log, known(head));
    assert_eq!(report.damage_list, [Damage::TooLong { line: 2, bytes: 3 * LINE_MAX as u64 + 1 }]);
}

#[test]
fn a_report_lists_a_hundred_damages_and_counts_all() {
    let report = checked(&b"{}\n".repeat(5_000), HeadFile::NotGiven);
    assert_eq!((report.damages, report.damage_list.len()), (5_000, 100));
}

proptest! {
    #[test]
    fn any_input_gives_a_report(lines in vec(any::<Vec<u8>>(), 0..6)) {
        let report = checked(&lines.join(&b'\n'), HeadFile::NotGiven);
        prop_assert_eq!(report.records, 0);
        prop_assert_eq!(report.is_intact(), lines.join(&b'\n').is_empty());
    }

    #[test]
    fn any_piece_put_in_is_noticed(at in 0..1_000usize, piece in vec(any::<u8>(), 1..40)) {
        let (text, head) = text(3);
        let mut changed = text.into_bytes();
        let at = at % (changed.len() + 1);
        changed.splice(at..at, piece);
        prop_assert!(!checked(&changed, known(head)).is_intact());
    }
}
