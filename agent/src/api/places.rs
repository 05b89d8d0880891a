//! The places of one socket: how many connections it serves at once, and who gets one when they are taken.
//!
//! A place belongs to whoever makes a call. A connection that asks nothing, or has not said all of what it asks, has it only
//! until another wants it: then the one that has waited longest goes, of the user who has the most. Ordinary users have a
//! share each and never all together what root needs to end or revoke something.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Connections that a socket serves at once.
pub(super) const ALL: usize = 64;
/// Of one ordinary user.
const SHARE: usize = 32;
/// Of all ordinary users.
const ORDINARY: usize = 48;

/// The places of one socket.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    number: u64,
    go: Arc<Notify>,
}

impl Places {
    /// A place for a connection of this user. `None`: all that it could have are in use.
    pub(super) fn take(&self, uid: u32) -> Option<Place> {
        let (number, go) = self.taken().take(uid)?;
        Some(Place { places: self.clone(), number, go })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// It waits for a call from now on, or has got one. False: the place is another's already.
    pub(super) fn waits(&self, waits: bool) -> bool {
        self.places.taken().waits(self.number, waits)
    }

    /// Ends when another has got the place.
    pub(super) async fn lost(&self) {
        self.go.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().held.remove(&self.number);
    }
}

/// Who has the places.
#[derive(Debug, Default)]
struct Taken {
    /// By number: the first is the one that has it longest.
    held: BTreeMap<u64, Held>,
    next: u64,
}

#[derive(Debug)]
struct Held {
    uid: u32,
    /// Since when it waits for a call, in the order of events.
    waits: Option<u64>,
    go: Arc<Notify>,
}

impl Taken {
    fn take(&mut self, uid: u32) -> Option<(u64, Arc<Notify>)> {
        while !self.has_room(uid) {
            let number = self.to_go(uid)?;
            let gone = self.held.remove(&number)?;
            gone.go.notify_one();
        }
        let number = self.tick();
        let go = Arc::new(Notify::new());
        self.held.insert(number, Held { uid, waits: Some(number), go: Arc::clone(&go) });
        Some((number, go))
    }

    fn has_room(&self, uid: u32) -> bool {
        let ordinary = || self.held.values().filter(|held| held.uid != 0).count();
        self.held.len() < ALL && (uid == 0 || (self.of(uid) < SHARE && ordinary() < ORDINARY))
    }

    /// The connection that makes room for another of this user: one that could make any, waits for a call, and is of the
    /// user with the most places. An ordinary user never takes root's.
    fn to_go(&self, uid: u32) -> Option<u64> {
        let within_share = uid == 0 || self.of(uid) < SHARE;
        let may_go = |held: &Held| held.uid == uid || (within_share && (uid == 0 || held.uid != 0));
        let waiting = self.held.iter().filter(|(_, held)| may_go(held));
        let waiting = waiting.filter_map(|(number, held)| Some((self.of(held.uid), held.waits?, *number)));
        waiting.max_by_key(|(count, since, _)| (*count, std::cmp::Reverse(*since))).map(|(_, _, number)| number)
    }

    fn of(&self, uid: u32) -> usize {
        self.held.values().filter(|held| held.uid == uid).count()
    }

    fn waits(&mut self, number: u64, waits: bool) -> bool {
        let since = waits.then(|| self.tick());
        self.held.get_mut(&number).map(|held| held.waits = since).is_some()
    }

    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many places of a user, each in a call or not.
    fn take(taken: &mut Taken, uid: u32, count: usize, waits: bool) -> Vec<u64> {
        let mut numbers = Vec::new();
        for _ in 0..count {
            let (number, _) = taken.take(uid).expect("there is room");
            assert!(taken.waits(number, waits));
            numbers.push(number);
        }
        numbers
    }

    #[test]
    fn who_waits_gives_way_to_who_comes_the_longest_first() {
        let mut taken = Taken::default();
        let first = take(&mut taken, 0, ALL, true);
        // one that asked something since waits the shortest
        assert!(taken.waits(first[0], false) && taken.waits(first[0], true));
        for gone in &first[1..4] {
            assert!(taken.take(0).is_some());
            assert!(!taken.held.contains_key(gone), "another went than the one that waited longest");
        }
        assert!(taken.held.contains_key(&first[0]));
        assert_eq!(taken.held.len(), ALL);
        assert!(!taken.waits(first[1], false), "who lost its place is told");
    }

    #[test]
    fn calls_keep_their_places_and_root_has_some_left() {
        let mut taken = Taken::default();
        take(&mut taken, 1000, SHARE, false);
        assert!(taken.take(1000).is_none(), "more than its share");
        take(&mut taken, 1001, ORDINARY - SHARE, false);
        assert!(taken.take(1002).is_none(), "more than all of them may have");
        let root = take(&mut taken, 0, ALL - ORDINARY, false);
        assert!(taken.take(0).is_none());
        taken.held.remove(&root[0]);
        assert!(taken.take(0).is_some());
    }

    #[test]
    fn who_has_the_most_makes_room() {
        let mut taken = Taken::default();
        let patient = take(&mut taken, 1001, 1, true)[0];
        take(&mut taken, 1000, 10 * SHARE, true);
        assert_eq!((taken.of(1000), taken.of(1001)), (SHARE, 1), "a user beyond its share makes room for itself");
        take(&mut taken, 1002, 10 * SHARE, true);
        assert!(taken.held.contains_key(&patient) && taken.held.len() == ORDINARY);
        let root = take(&mut taken, 0, ALL - ORDINARY + 3, true);
        assert!(taken.held.contains_key(&patient) && taken.held.len() == ALL);
        // an ordinary user takes none of root's
        take(&mut taken, 1003, 3, true);
        assert!(root.iter().all(|number| taken.held.contains_key(number)));
    }

    #[tokio::test]
    async fn a_place_is_given_back_and_its_loss_is_told() {
        let places = Places::default();
        let kept: Vec<Place> = (0..ALL).filter_map(|_| places.take(0)).collect();
        assert!(kept.len() == ALL && kept.iter().all(|place| place.waits(false)) && places.take(0).is_none());
        assert!(kept[7].waits(true));
        let newer = places.take(0).expect("the place of the one that waits");
        kept[7].lost().await;
        drop((kept, newer));
        assert!(places.taken().held.is_empty());
    }
}
