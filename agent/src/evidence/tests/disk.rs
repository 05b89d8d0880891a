//! Crashes, full disks, and files that are not as they should be.

use std::{
    cell::RefCell,
    io,
    os::unix::fs::{PermissionsExt, symlink},
    rc::Rc,
};

use proptest::{collection::vec, prelude::*};

use super::{
    super::writer::{Store, Writer},
    *,
};

fn causes(gaps: &[Gap]) -> Vec<GapCause> {
    gaps.iter().map(|gap| gap.cause).collect()
}

#[test]
fn a_new_log_is_private_and_goes_on_after_a_restart() {
    let place = Place::new();
    assert_eq!(place.restart(), Recovery { last: 0, gaps: Vec::new() });
    let mode = |path: PathBuf| fs::metadata(path).expect("it exists").permissions().mode() & 0o7777;
    assert_eq!((mode(place.evidence()), mode(place.log()), mode(place.head())), (0o700, 0o600, 0o600));
    assert_eq!(place.restart(), Recovery { last: 1, gaps: Vec::new() });
    let report = place.verify();
    assert!(report.is_intact() && report.records == 2, "{report}");
    let records: Result<Vec<Record>, Error> = read(&place.log()).expect("the log opens").collect();
    assert_eq!(records.expect("records").iter().map(|record| record.n).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn two_agents_cannot_write_one_log() {
    let place = Place::new();
    let (log, _) = place.open().expect("the log opens");
    let error = place.open().map(|_| ()).map_err(|error| error.to_string());
    assert!(error.is_err_and(|error| error.starts_with("another agent writes ")));
    drop(log);
    assert!(place.open().is_ok());
}

#[test]
fn a_log_that_is_taken_away_is_told_of() {
    let place = Place::new();
    let (mut log, _) = place.open().expect("the log opens");
    let aside = place.log().with_extension("aside");
    fs::rename(place.log(), &aside).expect("it is moved");
    assert!(log.append_durable(&state(1), at(1)).is_ok(), "records go to the file that was there");
    assert!(log.flush().is_err_and(|error| error.to_string().contains("was removed or replaced")));
    fs::rename(&aside, place.log()).expect("it is put back");
    assert!(log.flush().is_ok());
}

#[test]
fn after_a_crash_at_any_byte_the_log_goes_on_and_says_so() {
    let (whole, _) = text(2);
    let first = whole.find('\n').expect("two lines") + 1;
    for length in 0..whole.len() {
        let place = Place::with(2);
        let cut = &whole.as_bytes()[..length];
        fs::write(place.log(), cut).expect("a log");
        let recovery = place.restart();
        let kept = if length < first { 0 } else { first };
        assert_eq!(recovery.last, u64::from(kept > 0));
        let torn = length > kept;
        assert_eq!(causes(&recovery.gaps), [if torn { GapCause::Torn } else { GapCause::Cut }], "cut at {length}");
        assert_eq!(recovery.gaps[0].lost, Some(2 - recovery.last));
        assert_eq!(recovery.gaps[0].since.is_some(), kept > 0);
        let aside: Vec<Vec<u8>> = place.set_aside().iter().map(|path| fs::read(path).expect("a file")).collect();
        assert_eq!(aside.concat(), cut[kept..]);
        let report = place.verify();
        assert!(report.is_intact() && report.gaps == 1 && report.records == recovery.last + 2, "{report}");
    }
}

#[test]
fn a_torn_line_keeps_its_name_and_time() {
    let place = Place::with(1);
    fs::write(place.log(), text(1).0 + "{\"v\":1,").expect("a log");
    let recovery = place.restart();
    let aside = place.evidence().join("evidence.torn-2-20261121T220140.000000001Z");
    assert_eq!(place.set_aside(), std::slice::from_ref(&aside));
    assert_eq!(fs::metadata(&aside).expect("a file").permissions().mode() & 0o777, 0o600);
    let detail = recovery.gaps[0].detail.as_deref();
    assert_eq!(detail, Some(format!("what was there is in {}", aside.display()).as_str()));
}

#[test]
fn garbage_behind_the_last_good_line_is_set_aside_whole() {
    let long = "x".repeat(2 * LINE_MAX);
    for (garbage, cause) in [
        (format!("{long}\nshort\n"), GapCause::Altered),
        (format!("{long}\nunfinished"), GapCause::Altered),
        (long.clone(), GapCause::Altered),
        ("\0".repeat(4096), GapCause::Torn),
        (text(3).0.lines().last().unwrap_or_default().replace("active", "passive") + "\n", GapCause::Altered),
    ] {
        let place = Place::with(2);
        fs::write(place.log(), text(2).0 + &garbage).expect("a log");
        let recovery = place.restart();
        assert_eq!((recovery.last, causes(&recovery.gaps)), (2, vec![cause]));
        assert_eq!(place.set_aside().len(), 1);
        assert_eq!(fs::read_to_string(&place.set_aside()[0]).expect("a file"), garbage);
        assert!(place.verify().is_intact());
    }
}

#[test]
fn a_damaged_beginning_stays_where_it_is_and_stays_noticed() {
    let place = Place::with(3);
    let changed = text(3).0.replacen("starting", "standing", 1);
    fs::write(place.log(), &changed).expect("a log");
    assert_eq!(place.restart(), Recovery { last: 3, gaps: Vec::new() });
    assert!(fs::read_to_string(place.log()).expect("a log").starts_with(&changed));
    assert_eq!(place.verify().damage_list, [Damage::BadHash { line: 1 }]);
}

#[test]
fn the_head_file_speaks_against_a_shorter_or_another_log() {
    let place = Place::with(3);
    fs::write(place.log(), text(1).0).expect("a log");
    let gaps = place.restart().gaps;
    assert_eq!((gaps[0].cause, gaps[0].lost), (GapCause::Cut, Some(2)));

    let place = Place::with(3);
    fs::remove_file(place.log()).expect("a log was there");
    let gaps = place.restart().gaps;
    assert_eq!((gaps[0].cause, gaps[0].lost), (GapCause::Cut, Some(3)));

    let place = Place::with(1);
    let (other, _) = chain::seal(Head::START, &origin(), &state(1), at(0)).expect("a form");
    fs::write(place.log(), other + "\n").expect("a log");
    assert_eq!(causes(&place.restart().gaps), [GapCause::Altered]);

    for damage in ["", "{}", "{\"n\":1,\"hash\":\"00\"}"] {
        let place = Place::with(1);
        fs::write(place.head(), damage).expect("a head file");
        assert!(!place.verify().is_intact());
        assert_eq!(causes(&place.restart().gaps), [GapCause::Cut]);
        assert!(place.verify().is_intact());
    }

    let place = Place::with(1);
    fs::remove_file(place.head()).expect("a head file was there");
    assert_eq!(place.verify().damage_list, [Damage::HeadMissing]);
    assert_eq!(causes(&place.restart().gaps), [GapCause::Cut]);
}

#[test]
fn a_head_file_that_lags_is_no_gap() {
    let place = Place::with(3);
    fs::write(place.head(), serde_json::to_string(&text(2).1).expect("a head")).expect("a head file");
    assert!(place.verify().is_intact());
    assert_eq!(place.restart().gaps, []);
}

#[test]
fn what_is_no_log_of_ours_is_refused_unchanged() {
    let place = Place::with(1);
    let body = text(1).0.replacen("\"v\":1", "\"v\":2", 1);
    let resealed = reseal(body.trim_end());
    fs::write(place.log(), &resealed).expect("a log");
    let message = place.open().map(|_| ()).map_err(|error| error.to_string());
    assert!(message.is_err_and(|message| message.contains("records of format 2")));
    assert_eq!(fs::read_to_string(place.log()).expect("a log"), resealed);
    assert_eq!(place.verify().damage_list[0], Damage::UnknownFormat { line: 1, version: 2 });

    let place = Place::new();
    fs::create_dir(place.evidence()).expect("a folder");
    symlink("/dev/null", place.log()).expect("a link");
    assert!(matches!(place.open(), Err(Error::Open { .. })));

    let place = Place::new();
    fs::write(place.evidence(), "").expect("a file");
    assert!(matches!(place.open(), Err(Error::MakeFolder { .. })));
}

fn reseal(line: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let body = &line[..line.len() - 75];
    format!("{body},\"hash\":\"{}\"}}\n", crate::hex::encode(&Sha256::digest(body)))
}

#[test]
fn a_reader_goes_on_after_a_bad_line_and_ends_at_an_unfinished_one() {
    let place = Place::with(2);
    let lines = text(2).0;
    let (first, second) = lines.split_at(lines.find('\n').expect("two lines") + 1);
    fs::write(place.log(), format!("{first}not a record\n{second}{{\"v\":1")).expect("a log");
    let records: Vec<Result<Record, Error>> = read(&place.log()).expect("the log opens").collect();
    assert_eq!(records.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert!(records[1].as_ref().is_err_and(|error| error.to_string().contains(" line 2: ")));
}

#[test]
fn a_line_that_an_agent_is_writing_is_no_damage() {
    let place = Place::new();
    let (mut log, _) = place.open().expect("the log opens");
    log.append(&state(0), at(0)).expect("a record is written");
    let mut file = fs::File::options().append(true).open(place.log()).expect("the log opens");
    io::Write::write_all(&mut file, b"{\"v\":1").expect("half a line");
    let report = place.verify();
    assert!(report.is_intact() && report.being_written, "{report}");
    drop(log);
    assert_eq!(place.verify().damage_list, [Damage::TornTail { line: 2, bytes: 6 }]);
}

/// A disk with room for so many bytes, on which cutting off can fail too. The test keeps a handle on it.
#[derive(Debug, Clone, Default)]
struct Disk(Rc<RefCell<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    bytes: Vec<u8>,
    room: usize,
    stuck: bool,
}

impl Disk {
    fn set(&self, room: usize, stuck: bool) {
        let mut disk = self.0.borrow_mut();
        (disk.room, disk.stuck) = (room, stuck);
    }
}

impl Store for Disk {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let part = bytes.len().min(disk.room);
        disk.room -= part;
        disk.bytes.extend_from_slice(&bytes[..part]);
        if part == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        if disk.stuck {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.bytes.truncate(usize::try_from(length).expect("a small log"));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_full_disk_costs_records_but_never_the_chain(steps in vec((0..1_200usize, any::<bool>()), 1..30)) {
        let disk = Disk::default();
        let mut writer = Writer::new(disk.clone(), "log".into(), 0, Head::START, origin());
        let mut failed = 0;
        for (n, (room, stuck)) in (0..).zip(steps) {
            disk.set(room, stuck);
            failed += u64::from(writer.append(&state(n), at(n)).is_err());
        }
        disk.set(usize::MAX, false);
        prop_assert!(writer.append(&state(0), at(99)).is_ok());
        prop_assert_eq!(writer.missed(), 0);
        let report = checked(&disk.0.borrow().bytes, HeadFile::Known(writer.head()));
        prop_assert!(report.is_intact(), "{}", report);
        prop_assert_eq!(report.lost_in_gaps, failed);
    }
}
