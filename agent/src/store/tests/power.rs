//! The power goes at every moment of a history: what a disk may hold then is replayed, and read as the next agent does.

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::StorageBackend;

use super::*;

/// Bytes of a page of the database.
const PAGE: usize = 4096;
/// Of half a million lengths each takes some fifty microseconds to look at.
const STEP: usize = 61;

/// What a database asked of its disk.
#[derive(Debug, Clone)]
enum Step {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
    Sync,
}

impl Step {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => image[*at..at + bytes.len()].copy_from_slice(bytes),
            Self::Length(length) => image.resize(*length, 0),
            Self::Sync => {}
        }
    }

    /// The first half of it.
    fn half(&self) -> Option<Self> {
        match self {
            Self::Write { at, bytes } => Some(Self::Write { at: *at, bytes: bytes[..bytes.len() / 2].to_vec() }),
            Self::Length(_) | Self::Sync => None,
        }
    }
}

/// A disk that remembers all that was asked of it, in order.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, Vec<Step>)>>);

impl Disk {
    fn holding(image: &[u8]) -> Self {
        Self(Arc::new(Mutex::new((image.to_vec(), Vec::new()))))
    }

    fn open(&self) -> MutexGuard<'_, (Vec<u8>, Vec<Step>)> {
        self.0.lock().expect("nobody panicked")
    }

    fn steps(&self) -> Vec<Step> {
        self.open().1.clone()
    }

    fn take(&self, step: Step) {
        let mut held = self.open();
        step.apply(&mut held.0);
        held.1.push(step);
    }
}

fn place(offset: u64, length: usize) -> Range<usize> {
    let at = usize::try_from(offset).expect("fits");
    at..at + length
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.open().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let held = self.open();
        let found = held.0.get(place(offset, out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.take(Step::Length(place(length, 0).start));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.take(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = place(offset, bytes.len()).start;
        self.take(Step::Write { at, bytes: bytes.to_vec() });
        Ok(())
    }
}

/// A history: all that was asked of the disk, and how much of that was asked when each state was committed.
struct History {
    steps: Vec<Step>,
    commits: Vec<(usize, State)>,
}

impl History {
    /// Sessions come, change, grow, shrink and go. The steps go on until the store is closed.
    fn new() -> Self {
        let disk = Disk::default();
        let database = builder().create_with_backend(disk.clone()).expect("a database");
        lay_out(&database).expect("its tables");
        let mut commits = vec![(disk.steps().len(), State::new())];
        let mut live: Vec<Kept> = Vec::new();
        for (n, lines) in [(1, 40), (2, 1), (1, 400), (3, 40), (2, 0), (1, 2), (4, 900), (3, 0), (1, 0), (5, 40)] {
            live.retain(|kept| kept.start.session != id(n));
            let value = (lines > 0).then(|| {
                let kept = Kept { policy: "a line of a policy\n".repeat(lines).into(), ..sample(n) };
                let value = encode(&kept).expect("is encoded");
                live.push(kept);
                value
            });
            write(&database, SESSIONS, &[(id(n).to_string(), value)]).expect("is written");
            commits.push((disk.steps().len(), state(&live)));
        }
        drop(database);
        Self { steps: disk.steps(), commits }
    }

    /// What may be there once the disk had to have these many steps, and may have had those: from the last state that was
    /// committed to the one that was about to be.
    fn expected(&self, had: usize, may_have: usize) -> &[(usize, State)] {
        let committed = |steps: usize| self.commits.iter().take_while(|(at, _)| *at <= steps).count();
        &self.commits[committed(had) - 1..self.commits.len().min(committed(may_have) + 1)]
    }

    /// True: what is found is a state that may be there. False: it is reported.
    fn survives(&self, image: &[u8], (had, may_have): (usize, usize), what: &str) -> bool {
        let Some(found) = found(image, what) else { return false };
        let expected = self.expected(had, may_have);
        let known = self.commits.iter().position(|(_, state)| *state == found);
        assert!(
            expected.iter().any(|(_, state)| *state == found),
            "{what}: state {known:?} is not one that may be there"
        );
        true
    }

    /// The disk after the first `done` steps.
    fn image(&self, done: usize) -> Vec<u8> {
        let mut image = Vec::new();
        self.steps[..done].iter().for_each(|step| step.apply(&mut image));
        image
    }
}

/// What the next agent finds; `None`: that it cannot be read is reported.
fn found(image: &[u8], what: &str) -> Option<State> {
    let database = sound(|| builder().create_with_backend(Disk::holding(image))).ok()?;
    let rows = values(&database, SESSIONS).unwrap_or_else(|e| panic!("{what}: {e}"));
    let found: Result<Vec<Kept>, String> = rows.iter().map(|(_, value)| decode(value)).collect();
    let again = [("again".to_owned(), Some(b"x".to_vec()))];
    write(&database, STAYS, &again).unwrap_or_else(|e| panic!("{what}: cannot be written again: {e}"));
    found.ok().map(|kept| state(&kept))
}

/// Every prefix of what was asked, and with half of the next write. None of it damages what was committed.
#[test]
fn power_that_goes_between_two_writes_costs_nothing_that_was_kept() {
    let history = History::new();
    let begin = history.commits[0].0;
    let mut image = history.image(begin);
    for done in begin..=history.steps.len() {
        let what = format!("after {done} steps");
        assert!(history.survives(&image, (done, done), &what), "it is spoiled {what}");
        let Some(next) = history.steps.get(done) else { break };
        if let Some(half) = next.half() {
            let mut torn = image.clone();
            half.apply(&mut torn);
            let what = format!("in step {done}");
            assert!(history.survives(&torn, (done, done), &what), "it is spoiled {what}");
        }
        next.apply(&mut image);
    }
}

/// Before a sync the disk may have taken any of the writes: each one alone is left out, and each one alone is taken.
#[test]
fn writes_that_a_disk_took_in_another_order_are_a_state_or_reported() {
    let history = History::new();
    let mut begin = history.commits[0].0;
    let mut whole = 0;
    while let Some(length) = history.steps[begin..].iter().position(|step| matches!(step, Step::Sync)) {
        let batch = &history.steps[begin..begin + length];
        for odd in 0..batch.len() {
            for left_out in [true, false] {
                let mut image = history.image(begin);
                for (n, step) in batch.iter().enumerate() {
                    // a file is as long as it has to be for what is written in it
                    if matches!(step, Step::Length(_)) || (n == odd) != left_out {
                        step.apply(&mut image);
                    }
                }
                let what = format!("step {odd} of {length} after {begin}, left out: {left_out}");
                whole += usize::from(history.survives(&image, (begin, begin + length), &what));
            }
        }
        begin += length + 1;
    }
    assert!(whole > 0, "every one of them was spoiled");
}

/// Every length within a page of the begin and the end, and every `STEP`th between: it is reported, or a state that was
/// committed once.
#[test]
fn a_store_that_is_cut_anywhere_is_reported_or_was_so() {
    for origin in [false, true].map(Origin::new) {
        let length = origin.bytes.len();
        let edges = (0..PAGE).chain(length - PAGE..length);
        let cuts = edges
            .chain((PAGE..length - PAGE).step_by(STEP))
            .filter_map(|at| found(&origin.bytes[..at], &format!("cut at {at}")));
        let whole = cuts.inspect(|found| assert!(origin.states.contains(found), "{found:?} was never so")).count();
        assert!(whole < length, "no cut was noticed");
        assert!(found(&origin.bytes, "not cut").is_some_and(|found| found.len() == 3), "it was spoiled before");
    }
}
