//! What an earlier agent left pinned and in force: enough of it to end its sessions, and to read the records that nobody
//! has read, before it is replaced.

use std::{fs::File, io::Read as _, path::Path};

use aya::maps::{Array, Map, MapData, MapError, RingBuf};
use tipstaff_common::{
    label::SessionRef,
    session::{MODE_ENFORCE, STATE_ENDED, SessionConfig, SessionCounters, state_word},
};

use super::{
    KernelError, Member, Pins, adopt,
    members::decode_rows,
    ring::{self, DecodeError, Event},
};

/// The pinned maps and the member iterator of an earlier agent.
pub struct Leftover {
    states: Array<MapData, u64>,
    counters: Array<MapData, SessionCounters>,
    configs: Array<MapData, SessionConfig>,
    rings: [RingBuf<MapData>; 2],
    members: std::path::PathBuf,
}

impl Leftover {
    /// Opens what `pins` holds; `None` where nothing is pinned.
    pub fn open(pins: &Pins) -> Result<Option<Self>, KernelError> {
        let members = pins.link(adopt::speaking(pins)?, "members");
        if !members.exists() || !pins.map("SESSION_STATE").exists() {
            return Ok(None);
        }
        Ok(Some(Self {
            states: open(&pins.map("SESSION_STATE"), Map::Array)?,
            counters: open(&pins.map("SESSION_COUNTERS"), Map::Array)?,
            configs: open(&pins.map("SESSION_CONFIG"), Map::Array)?,
            rings: [open(&pins.map("VERDICTS"), Map::RingBuf)?, open(&pins.map("ACTIVITY"), Map::RingBuf)?],
            members,
        }))
    }

    /// Ends a session in the programs that are still in force.
    pub fn mark_ended(&mut self, slot: u32, generation: u32) -> Result<(), KernelError> {
        let word = state_word(generation, STATE_ENDED);
        self.states.set(slot, word, 0).map_err(|e| KernelError::refused("the end of a session", &e))
    }

    /// Every thread that is still labelled.
    pub fn members(&self) -> Result<Vec<Member>, KernelError> {
        let mut rows = Vec::new();
        let mut file = File::open(&self.members).map_err(KernelError::file("open", &self.members))?;
        file.read_to_end(&mut rows).map_err(KernelError::file("read", &self.members))?;
        Ok(decode_rows(&rows))
    }

    /// Whether the slot is still this session's, and it enforces, as the programs in force have it.
    pub fn enforces(&self, session: SessionRef) -> Result<bool, KernelError> {
        let refused = |error: &MapError| KernelError::refused("the mode of a session", error);
        let word = self.states.get(&session.slot, 0).map_err(|e| refused(&e))?;
        let config = self.configs.get(&session.slot, 0).map_err(|e| refused(&e))?;
        Ok(word >> 32 == u64::from(session.generation) && config.mode == MODE_ENFORCE)
    }

    /// What a session did.
    pub fn counters(&self, slot: u32) -> Result<SessionCounters, KernelError> {
        self.counters.get(&slot, 0).map_err(|e| KernelError::refused("the counters of a session", &e))
    }

    /// Takes the next record that was not read.
    pub fn next_event(&mut self) -> Option<Result<Event, DecodeError>> {
        self.rings.iter_mut().find_map(|ring| ring.next().map(|item| ring::decode(&item)))
    }
}

fn open<T: TryFrom<Map, Error = MapError>>(path: &Path, kind: fn(MapData) -> Map) -> Result<T, KernelError> {
    let refused = |error: &MapError| KernelError::refused(format!("the pin {}", path.display()), error);
    let data = MapData::from_pin(path).map_err(|e| refused(&e))?;
    T::try_from(kind(data)).map_err(|e| refused(&e))
}
