//! Port rules as the kernel programs look them up: in the entry of a trie where they have room there, else in a list of their own.

use tipstaff_common::{
    limits::{PORT_RULES, PORT_RULES_INLINE},
    rule::{NetEntry, PortList, PortRule},
};

use super::KernelError;

/// The lists of one revision, by their numbers, which begin at 0.
#[derive(Debug, Default)]
pub(super) struct PortLists(Vec<(u32, PortList)>);

impl PortLists {
    /// The entry for these rules; those without room in it become the next list.
    ///
    /// # Errors
    /// They are more than a list has room for: no compiled policy has such.
    pub(super) fn entry(&mut self, rules: &[PortRule]) -> Result<NetEntry, KernelError> {
        let full = || KernelError::Full { what: "port rules of a prefix", limit: as_u32(PORT_RULES) };
        let mut entry = NetEntry { count: as_u32(rules.len()), ..NetEntry::default() };
        if let Some(room) = entry.ports.get_mut(..rules.len()) {
            room.copy_from_slice(rules);
        } else {
            let mut list = PortList::default();
            list.ports.get_mut(..rules.len()).ok_or_else(full)?.copy_from_slice(rules);
            entry.list = as_u32(self.0.len());
            self.0.push((entry.list, list));
        }
        Ok(entry)
    }

    pub(super) fn all(&self) -> &[(u32, PortList)] {
        &self.0
    }
}

/// The rules of an entry; `list` finds a list by its number. `None`: it is not there, or the entry is none of ours.
pub(super) fn rules_of(entry: &NetEntry, list: impl FnOnce(u32) -> Option<PortList>) -> Option<Vec<PortRule>> {
    let count = usize::try_from(entry.count).ok()?;
    let rules = if count <= PORT_RULES_INLINE { &entry.ports[..] } else { &list(entry.list)?.ports };
    rules.get(..count).map(<[PortRule]>::to_vec)
}

fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "a test")]

    use super::*;

    fn rules(count: usize) -> Vec<PortRule> {
        (1..=count).map(|n| PortRule { low: u16::try_from(n).unwrap_or(0), high: 99, ..PortRule::default() }).collect()
    }

    #[test]
    fn every_number_of_rules_comes_back() {
        let mut lists = PortLists::default();
        let entries: Vec<_> = (0..=PORT_RULES).map(|count| lists.entry(&rules(count)).expect("room")).collect();
        for (count, entry) in entries.iter().enumerate() {
            let list = |number: u32| lists.all().iter().find(|(n, _)| *n == number).map(|(_, list)| *list);
            assert_eq!(rules_of(entry, list), Some(rules(count)), "{count}");
            let none = |_| None;
            assert_eq!(rules_of(entry, none).is_some(), count <= PORT_RULES_INLINE, "{count}");
        }
        assert_eq!(lists.all().len(), PORT_RULES - PORT_RULES_INLINE);
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let mut lists = PortLists::default();
        assert!(lists.entry(&rules(PORT_RULES + 1)).is_err());
        assert!(lists.all().is_empty());
        let wild = NetEntry { count: u32::MAX, ..NetEntry::default() };
        assert_eq!(rules_of(&wild, |_| Some(PortList::default())), None);
    }
}
