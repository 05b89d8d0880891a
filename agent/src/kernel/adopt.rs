//! What an earlier agent left pinned: whether this one may take it over, and how one load of programs follows another
//! without a moment in which nobody decides.
//!
//! The maps are adopted as they are. The programs of a new load are attached beside those of the old one; then one word
//! makes them the ones that speak; then the old ones are taken off. An agent that dies anywhere in between leaves a
//! complete load that speaks, and perhaps another that merely decides.

use std::{path::Path, sync::OnceLock};

use aya::maps::{Array, Map, MapData, MapInfo};
use aya_obj::Object;
use tracing::{info, warn};

use super::{Kernel, KernelError, Pins, load::OBJECT};

const WORD: &str = "GENERATION";

/// What the maps of an object must be like.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) name: String,
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

/// The maps that the object declares, without its sections of data. It is read once.
pub(super) fn shapes() -> Result<&'static [Shape], KernelError> {
    static SHAPES: OnceLock<Vec<Shape>> = OnceLock::new();
    match SHAPES.get() {
        Some(shapes) => Ok(shapes),
        None => read_shapes(OBJECT).map(|shapes| SHAPES.get_or_init(|| shapes).as_slice()),
    }
}

fn read_shapes(object: &[u8]) -> Result<Vec<Shape>, KernelError> {
    let parsed = Object::parse(object).map_err(|e| KernelError::refused("the kernel object", &e))?;
    let maps = parsed.maps.into_iter().filter(|(name, _)| !name.starts_with('.'));
    let mut shapes: Vec<Shape> = maps
        .map(|(name, map)| Shape {
            name,
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            entries: map.max_entries(),
            flags: map.map_flags(),
        })
        .collect();
    // the same complaint each time
    shapes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(shapes)
}

impl Pins {
    /// Checks that what is pinned is of this version: the loader takes whatever stands at a path.
    pub fn check(&self) -> Result<(), KernelError> {
        if let Some(path) = self.of_other_layouts()?.into_iter().next() {
            return Err(KernelError::OtherLayout { path });
        }
        check(self, shapes()?)
    }
}

/// Checks every pinned map against what the programs expect. Once programs speak, none may be missing: another in its
/// place would not be the one that they use.
pub(super) fn check(pins: &Pins, shapes: &[Shape]) -> Result<(), KernelError> {
    let in_force = pins.generations()?.into_iter().any(|g| pins.links(g, "").is_ok_and(|links| !links.is_empty()));
    for shape in shapes {
        let path = pins.map(&shape.name);
        if path.exists() {
            compare(shape, &path)?;
        } else if in_force {
            return Err(KernelError::PinGone { path });
        }
    }
    Ok(())
}

fn compare(shape: &Shape, path: &Path) -> Result<(), KernelError> {
    let refused = |e: &aya::maps::MapError| KernelError::refused(format!("the pin {}", path.display()), e);
    let found = MapInfo::from_pin(path).map_err(|e| refused(&e))?;
    let kind = found.map_type().map_err(|e| refused(&e))? as u32;
    // in the order in which a reader would ask
    let pairs = [
        ("type", shape.kind, kind),
        ("key size", shape.key, found.key_size()),
        ("value size", shape.value, found.value_size()),
        ("max_entries", shape.entries, found.max_entries()),
        ("flags", shape.flags, found.map_flags()),
    ];
    match pairs.into_iter().find(|(_, expected, found)| expected != found) {
        None => Ok(()),
        Some((what, expected, found)) => Err(KernelError::OtherMap { path: path.into(), what, expected, found }),
    }
}

/// The load that speaks in what is pinned; 0 where nothing is.
pub(super) fn speaking(pins: &Pins) -> Result<u32, KernelError> {
    let path = pins.map(WORD);
    if !path.exists() {
        return Ok(0);
    }
    let refused = |e: &aya::maps::MapError| KernelError::refused(format!("the pin {}", path.display()), e);
    let data = MapData::from_pin(&path).map_err(|e| refused(&e))?;
    let word: Array<_, u32> = Map::Array(data).try_into().map_err(|e| refused(&e))?;
    word.get(&0, 0).map_err(|e| refused(&e))
}

/// Removes what a start that was cut short left: loads that do not speak. The one that does is complete.
pub(super) fn sweep(pins: &Pins, speaking: u32) -> Result<(), KernelError> {
    for silent in pins.generations()?.into_iter().filter(|g| *g != speaking) {
        info!("load {silent} was never completed or is replaced: it is taken off");
        pins.remove_generation(silent)?;
    }
    Ok(())
}

impl Kernel {
    /// Lets the programs of this load speak: one write. They are all attached.
    pub fn speak(&mut self) -> Result<(), KernelError> {
        self.set_speaker(self.generation)
    }

    /// Whether no load spoke before this one: nothing stands in its maps.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.previous == 0
    }

    /// Whether sessions of an earlier load may live: its clock ticks.
    pub fn inherits_clock(&self, pins: &Pins) -> Result<bool, KernelError> {
        Ok(self.previous != 0 && !pins.links(self.previous, "clock")?.is_empty())
    }

    /// Takes the programs of every other load off. This one decides, and was proven to.
    pub fn replace_others(&self, pins: &Pins) -> Result<(), KernelError> {
        sweep(pins, self.generation)
    }

    /// Gives the word back to the load before and takes this one off: the start failed.
    pub fn withdraw(mut self, pins: &Pins) {
        let generation = self.generation;
        let undone = self.set_speaker(self.previous).and_then(|()| pins.remove_generation(generation));
        if let Err(problem) = undone {
            warn!("{problem}");
        }
    }
}
