//! Where fields lie in the kernel's structures, from its BTF. Reads only what is asked for: one pass over the types that
//! looks at the names of structures, then the members of those that were named.

use std::collections::{HashMap, HashSet};

/// Why an offset is not to be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Not BTF, or cut short.
    #[error("the type information is damaged at byte {0}")]
    Damaged(usize),
    /// The structure has no such field.
    #[error("struct {structure} has no field {field}")]
    NoField {
        /// C name of the structure.
        structure: String,
        /// C name of the field; dots lead into members.
        field: String,
    },
    /// The enumeration has no such constant.
    #[error("enum {enumeration} has no constant {name}")]
    NoConstant {
        /// C name of the enumeration.
        enumeration: String,
        /// C name of the constant.
        name: String,
    },
}

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FORWARD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNCTION: u32 = 12;
/// Bytes of a header, as of a version that has types and strings alone.
const HEADER: u32 = 24;
/// Typedef, volatile, const, restrict, type tag: a type that stands for another.
const MODIFIERS: [u32; 5] = [8, 9, 10, 11, 18];
/// Anonymous members within anonymous members, no further.
const DEPTH: u32 = 8;

/// Types of the running kernel, with the structures that were asked for.
#[derive(Debug)]
pub struct Btf<'a> {
    data: &'a [u8],
    strings: usize,
    /// Byte position of each type's head, by id.
    types: Vec<usize>,
    structures: HashMap<&'a str, usize>,
    enumerations: HashMap<&'a str, usize>,
}

impl<'a> Btf<'a> {
    /// Indexes `data`, the content of `/sys/kernel/btf/vmlinux`, for the structures and enumerations in `names`.
    pub fn parse(data: &'a [u8], names: &[&str]) -> Result<Self, BtfError> {
        if u16_at(data, 0)? != MAGIC {
            return Err(BtfError::Damaged(0));
        }
        let header = u32_at(data, 4)? as usize;
        let first = add(header, u32_at(data, 8)? as usize)?;
        let end = add(first, u32_at(data, 12)? as usize)?;
        let strings = add(header, u32_at(data, 16)? as usize)?;
        let mut btf = Self { data, strings, types: vec![0], structures: HashMap::new(), enumerations: HashMap::new() };
        let mut at = first;
        while at < end {
            btf.types.push(at);
            let info = u32_at(data, at + 4)?;
            if matches!(kind(info), KIND_STRUCT | KIND_ENUM) {
                let name = btf.string(u32_at(data, at)?)?;
                if names.contains(&name) {
                    let of_kind = if kind(info) == KIND_ENUM { &mut btf.enumerations } else { &mut btf.structures };
                    of_kind.entry(name).or_insert(at);
                }
            }
            at = add(at, 12 + tail(info).ok_or(BtfError::Damaged(at))?)?;
        }
        Ok(btf)
    }

    /// Byte offset of `field` in `structure`; `a.b` is field `b` of the structure that `a` is. Fields of anonymous
    /// members count as the structure's own.
    pub fn offset(&self, structure: &str, field: &str) -> Result<u32, BtfError> {
        let bits = self.bit(structure, field)?;
        let missing = || BtfError::NoField { structure: structure.into(), field: field.into() };
        if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err(missing()) }
    }

    /// As [`Self::offset`], in bits: for bit fields.
    pub fn bit(&self, structure: &str, field: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::NoField { structure: structure.into(), field: field.into() };
        let mut at = *self.structures.get(structure).ok_or_else(missing)?;
        let mut bits = 0u32;
        for part in field.split('.') {
            let (offset, member_type) = self.member(at, part, DEPTH)?.ok_or_else(missing)?;
            bits = bits.checked_add(offset).ok_or_else(missing)?;
            at = self.resolve(member_type)?;
        }
        Ok(bits)
    }

    /// The value of a constant of an enumeration.
    pub fn constant(&self, enumeration: &str, name: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::NoConstant { enumeration: enumeration.into(), name: name.into() };
        let at = *self.enumerations.get(enumeration).ok_or_else(missing)?;
        let count = (u32_at(self.data, at + 4)? & 0xffff) as usize;
        for index in 0..count {
            let constant = add(at, 12 + 8 * index)?;
            if self.string(u32_at(self.data, constant)?)? == name {
                return u32_at(self.data, constant + 4);
            }
        }
        Err(missing())
    }

    /// How many arguments a function has; `None`: there is no such function.
    pub fn arguments(&self, function: &str) -> Result<Option<u32>, BtfError> {
        let name = [function.as_bytes(), b"\0"].concat();
        for at in self.types.iter().skip(1) {
            if kind(u32_at(self.data, at + 4)?) != KIND_FUNCTION {
                continue;
            }
            // of tens of thousands, all but one are told apart by their first bytes
            let start = add(self.strings, u32_at(self.data, *at)? as usize)?;
            if self.data.get(start..).is_some_and(|rest| rest.starts_with(&name)) {
                let prototype = self.resolve(u32_at(self.data, at + 8)?)?;
                return Ok(Some(u32_at(self.data, prototype + 4)? & 0xffff));
            }
        }
        Ok(None)
    }

    /// BTF in which each type has the number that it has here, and functions and typedefs of those names have their kind and
    /// their name. Of the others nothing is left but their place, and what comes after the last one is not there: to read
    /// it takes a fraction of the time and memory.
    pub fn reduced(&self, names: &[String]) -> Result<Vec<u8>, BtfError> {
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let (mut types, mut strings, mut end) = (Vec::with_capacity(12 * self.types.len()), vec![0], 0);
        for at in self.types.iter().skip(1) {
            let of_kind = kind(u32_at(self.data, at + 4)?);
            let mut words = [0, KIND_FORWARD << 24, 0];
            if matches!(of_kind, KIND_FUNCTION | KIND_TYPEDEF) {
                let name = self.string(u32_at(self.data, *at)?)?;
                if names.contains(name) {
                    words = [length(&strings), of_kind << 24, 0];
                    strings.extend_from_slice(name.as_bytes());
                    strings.push(0);
                    end = types.len() + 12;
                }
            }
            types.extend(words.into_iter().flat_map(u32::to_ne_bytes));
        }
        types.truncate(end);
        let version = [1, 0];
        let mut data = [MAGIC.to_ne_bytes(), version].concat();
        let header = [HEADER, 0, length(&types), length(&types), length(&strings)];
        data.extend(header.into_iter().flat_map(u32::to_ne_bytes));
        data.extend(types);
        data.extend(strings);
        Ok(data)
    }

    /// Offset in bits and type of a member, looked for in anonymous members too.
    fn member(&self, at: usize, name: &str, depth: u32) -> Result<Option<(u32, u32)>, BtfError> {
        let info = u32_at(self.data, at + 4)?;
        if !matches!(kind(info), KIND_STRUCT | KIND_UNION) || depth == 0 {
            return Ok(None);
        }
        for index in 0..(info & 0xffff) as usize {
            let member = add(at, 12 + 12 * index)?;
            let (text, of_type) = (self.string(u32_at(self.data, member)?)?, u32_at(self.data, member + 4)?);
            let raw = u32_at(self.data, member + 8)?;
            // with the kind flag, the upper byte is the width of a bit field
            let offset = if info >> 31 == 1 { raw & 0xff_ffff } else { raw };
            if text == name {
                return Ok(Some((offset, of_type)));
            }
            if text.is_empty()
                && let Some((inner, found)) = self.member(self.resolve(of_type)?, name, depth - 1)?
            {
                return Ok(Some((offset.saturating_add(inner), found)));
            }
        }
        Ok(None)
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Result<usize, BtfError> {
        let mut id = id;
        for _ in 0..16 {
            let at = *self.types.get(id as usize).ok_or(BtfError::Damaged(self.data.len()))?;
            if id == 0 || !MODIFIERS.contains(&kind(u32_at(self.data, at + 4)?)) {
                return Ok(at);
            }
            id = u32_at(self.data, at + 8)?;
        }
        Err(BtfError::Damaged(self.data.len()))
    }

    fn string(&self, offset: u32) -> Result<&'a str, BtfError> {
        let start = add(self.strings, offset as usize)?;
        let rest = self.data.get(start..).ok_or(BtfError::Damaged(start))?;
        let end = rest.iter().position(|b| *b == 0).ok_or(BtfError::Damaged(start))?;
        std::str::from_utf8(&rest[..end]).map_err(|error| BtfError::Damaged(start + error.valid_up_to()))
    }
}

const fn kind(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

/// Bytes that follow a type's head, by kind and member count (kernel: `include/uapi/linux/btf.h`, 6.18).
const fn tail(info: u32) -> Option<usize> {
    let members = (info & 0xffff) as usize;
    Some(match kind(info) {
        1 | 14 | 17 => 4,
        2 | 7..=12 | 16 | 18 => 0,
        3 => 12,
        4 | 5 | 15 | 19 => 12 * members,
        6 | 13 => 8 * members,
        _ => return None,
    })
}

/// Of something shorter than BTF can be long.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn add(a: usize, b: usize) -> Result<usize, BtfError> {
    a.checked_add(b).ok_or(BtfError::Damaged(a))
}

fn u16_at(data: &[u8], at: usize) -> Result<u16, BtfError> {
    data.get(at..).and_then(|d| d.first_chunk()).map(|b| u16::from_ne_bytes(*b)).ok_or(BtfError::Damaged(at))
}

fn u32_at(data: &[u8], at: usize) -> Result<u32, BtfError> {
    data.get(at..).and_then(|d| d.first_chunk()).map(|b| u32::from_ne_bytes(*b)).ok_or(BtfError::Damaged(at))
}

#[cfg(test)]
mod tests {
    use aya_obj::btf::BtfKind;
    use proptest::prelude::*;

    use super::*;

    /// `struct outer { int first; struct { const inner_t second; }; }`, `typedef struct inner inner_t`,
    /// `struct inner { int a; int b; }`
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0first\0inner\0inner_t\0second\0a\0b\0";
        let name = |s: &str| {
            let needle = [&[0], s.as_bytes(), &[0]].concat();
            u32::try_from(strings.windows(needle.len()).position(|w| w == needle).unwrap() + 1).unwrap()
        };
        let mut types: Vec<u32> = Vec::new();
        types.extend([0, 1 << 24, 4, 32]); // 1: int
        types.extend([name("inner"), (4 << 24) | 2, 8, name("a"), 1, 0, name("b"), 1, 32]); // 2
        types.extend([name("inner_t"), 8 << 24, 2]); // 3
        types.extend([0, 10 << 24, 3]); // 4: const inner_t
        types.extend([0, (4 << 24) | 1, 8, name("second"), 4, 0]); // 5: anonymous
        types.extend([name("outer"), (4 << 24) | 2, 12, name("first"), 1, 0, 0, 5, 32]); // 6
        let length = u32::try_from(types.len() * 4).unwrap();
        let mut data = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, length, length, u32::try_from(strings.len()).unwrap()] {
            data.extend(u32::to_ne_bytes(word));
        }
        types.iter().for_each(|t| data.extend(t.to_ne_bytes()));
        data.extend(strings);
        data
    }

    #[test]
    fn finds_fields_of_members_and_of_anonymous_members() {
        let data = sample();
        let btf = Btf::parse(&data, &["outer"]).unwrap();
        assert_eq!(btf.offset("outer", "first"), Ok(0));
        assert_eq!(btf.offset("outer", "second"), Ok(4));
        assert_eq!(btf.offset("outer", "second.b"), Ok(8));
    }

    #[test]
    fn names_what_is_missing() {
        let data = sample();
        let btf = Btf::parse(&data, &["outer"]).unwrap();
        let error = btf.offset("outer", "third").unwrap_err();
        assert_eq!(error.to_string(), "struct outer has no field third");
        assert!(btf.offset("inner", "a").is_err(), "was not asked for");
    }

    #[test]
    fn reduced_keeps_numbers_and_the_names_that_were_asked_for() {
        let data = sample();
        let btf = Btf::parse(&data, &["outer"]).unwrap();
        let reduced = btf.reduced(&["inner_t".into(), "inner".into(), "absent".into()]).unwrap();
        let read = aya::Btf::parse(&reduced, aya::Endianness::default()).unwrap();
        assert_eq!(read.id_by_type_name_kind("inner_t", BtfKind::Typedef).unwrap(), 3);
        assert!(read.id_by_type_name_kind("inner", BtfKind::Struct).is_err(), "is no function and no typedef");
        assert!(read.id_by_type_name_kind("absent", BtfKind::Typedef).is_err());
        let nothing = btf.reduced(&[]).unwrap();
        assert!(aya::Btf::parse(&nothing, aya::Endianness::default()).is_ok());
    }

    #[test]
    fn reduced_agrees_with_the_running_kernel() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let names = ["btf_trace_sched_process_exec", "bpf_iter_task", "bpf_lsm_task_alloc"].map(str::to_owned);
        let reduced = Btf::parse(&data, &[]).unwrap().reduced(&names).unwrap();
        let whole = aya::Btf::parse(&data, aya::Endianness::default()).unwrap();
        let reduced = aya::Btf::parse(&reduced, aya::Endianness::default()).unwrap();
        for (name, kind) in names.iter().zip([BtfKind::Typedef, BtfKind::Func, BtfKind::Func]) {
            let in_both = [&whole, &reduced].map(|btf| btf.id_by_type_name_kind(name, kind).ok());
            assert_eq!(in_both[0], in_both[1], "{name}");
        }
        assert!(reduced.id_by_type_name_kind("bpf_iter_task", BtfKind::Func).is_ok());
    }

    #[test]
    fn reads_the_running_kernel() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let btf = Btf::parse(&data, &["task_struct", "file"]).unwrap();
        assert!(btf.offset("task_struct", "tgid").unwrap() > 0);
        assert!(btf.offset("file", "f_path.dentry").unwrap() > 0);
    }

    #[test]
    fn counts_the_arguments_of_a_function() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let btf = Btf::parse(&data, &[]).unwrap();
        assert_eq!(btf.arguments("bpf_lsm_file_open"), Ok(Some(1)));
        assert_eq!(btf.arguments("bpf_lsm_task_alloc"), Ok(Some(2)));
        assert_eq!(btf.arguments("bpf_lsm_file"), Ok(None), "the beginning of a name is none");
    }

    proptest! {
        #[test]
        fn damage_is_an_error_and_never_a_panic(position in 0usize..300, value: u8, cut in 0usize..300) {
            let mut data = sample();
            if let Some(byte) = data.get_mut(position) { *byte = value; }
            data.truncate(cut.max(1));
            if let Ok(btf) = Btf::parse(&data, &["outer", "inner"]) {
                let _ = btf.offset("outer", "second.b");
                let _ = btf.reduced(&["inner_t".into()]);
                let _ = btf.arguments("inner");
                let _ = btf.offset("inner", "a");
            }
        }
    }
}
