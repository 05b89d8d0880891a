//! Calendar windows: `Mon..Fri 09:00-17:00 Europe/Berlin`. Owns their text and what they mean across changes of daylight
//! saving time. The time zones are those that the program carries: no file is read, and the host's own zone is never
//! asked.

use std::{fmt, sync::LazyLock};

use jiff::{
    Timestamp,
    civil::{Date, Time, Weekday},
    tz::{TimeZone, TimeZoneDatabase},
};

const DAYS: [(&str, Weekday); 7] = [
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
    ("Sun", Weekday::Sunday),
];
const DAY_MINUTES: u16 = 24 * 60;
const WEEK_MINUTES: usize = 7 * 24 * 60;
/// Windows that may follow each other without a pause before the last end is taken as the end: more than a year of days.
const CHAIN: usize = 400;
/// Every window opens within so many days, whatever daylight saving time does to one of them.
const AHEAD: i32 = 15;

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Why a text is no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WindowError {
    #[error("is no window: write days, times and a time zone, such as Mon..Fri 09:00-17:00 Europe/Berlin")]
    Form,
    #[error("has the unknown day {0:?}: write Mon, Tue, Wed, Thu, Fri, Sat or Sun, as Mon..Fri or Mon,Wed")]
    Day(String),
    #[error("has the time {0:?}: write it as 09:00, from 00:00 to 24:00")]
    Time(String),
    #[error("never opens: it closes when it opens; write 00:00-24:00 for whole days")]
    Never,
    #[error("has the unknown time zone {0:?}: write a name of the IANA database, such as Europe/Berlin or UTC")]
    Zone(String),
}

/// One window: on some days of the week, between two times, in one zone. One that closes before it opens closes on the
/// next day.
#[derive(Clone, PartialEq, Eq)]
pub struct Window {
    days: [bool; 7],
    /// Minutes after midnight.
    from: u16,
    to: u16,
    zone: TimeZone,
    text: String,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({:?})", self.text)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl Window {
    pub(super) fn parse(text: &str) -> Result<Self, WindowError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (days, times, zone) = match words[..] {
            [days, times, zone] => (parse_days(days)?, times, zone),
            [times, zone] if times.contains(':') => ([true; 7], times, zone),
            _ => return Err(WindowError::Form),
        };
        let (from, to) = times.split_once('-').ok_or(WindowError::Form)?;
        let (from, to) = (parse_time(from)?, parse_time(to)?);
        if from == to || from == DAY_MINUTES {
            return Err(WindowError::Never);
        }
        let zone = ZONES.get(zone).map_err(|_unknown| WindowError::Zone(zone.to_owned()))?;
        Ok(Self { days, from, to, zone, text: words.join(" ") })
    }

    /// Opening and closing of the window that opens on this local day; none if it does not open then.
    ///
    /// A time that daylight saving time leaves out is moved behind the gap, so that the window keeps its length; of one
    /// that comes twice, the first counts.
    fn on(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.days[usize::try_from(day.weekday().to_monday_zero_offset()).ok()?] {
            return None;
        }
        let closes_on = if self.to <= self.from { day.tomorrow().ok()? } else { day };
        let (opens, closes) = (self.at(day, self.from)?, self.at(closes_on, self.to)?);
        (opens < closes).then_some((opens, closes))
    }

    fn at(&self, day: Date, minutes: u16) -> Option<Timestamp> {
        let (day, minutes) = if minutes == DAY_MINUTES { (day.tomorrow().ok()?, 0) } else { (day, minutes) };
        let (hour, minute) = (i8::try_from(minutes / 60).ok()?, i8::try_from(minutes % 60).ok()?);
        let time = Time::new(hour, minute, 0, 0).ok()?;
        Some(day.to_datetime(time).to_zoned(self.zone.clone()).ok()?.timestamp())
    }

    /// The openings and closings of the days around a moment, `before` and `after` it.
    fn around(&self, moment: Timestamp, after: i32) -> impl Iterator<Item = (Timestamp, Timestamp)> + '_ {
        let today = moment.to_zoned(self.zone.clone()).date();
        // a window of yesterday may still be open
        (-1..=after).filter_map(move |days| self.on(today.checked_add(jiff::Span::new().days(days)).ok()?))
    }

    /// When the window that is open at this moment closes.
    fn closes_after(&self, moment: Timestamp) -> Option<Timestamp> {
        self.around(moment, 0).filter(|(opens, closes)| *opens <= moment && moment < *closes).map(|(_, c)| c).max()
    }

    /// Minutes of a week from Monday 00:00 in which it is open, as its zone's clocks show them.
    fn minutes(&self) -> impl Iterator<Item = usize> + '_ {
        let length = if self.to > self.from { self.to - self.from } else { self.to + DAY_MINUTES - self.from };
        let days = (0usize..7).filter(|day| self.days[*day]);
        days.flat_map(move |day| {
            let opens = day * usize::from(DAY_MINUTES) + usize::from(self.from);
            (opens..opens + usize::from(length)).map(|minute| minute % WEEK_MINUTES)
        })
    }

    /// Whether both are open at some time by the same clock. Windows of different zones are not compared.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        if self.zone != other.zone {
            return false;
        }
        let mut open = vec![false; WEEK_MINUTES];
        self.minutes().for_each(|minute| open[minute] = true);
        other.minutes().any(|minute| open[minute])
    }
}

/// When the last of the windows that follow each other from this moment on closes; none: no window is open.
#[must_use]
pub fn open_until(windows: &[Window], moment: Timestamp) -> Option<Timestamp> {
    let closes = |at: Timestamp| windows.iter().filter_map(|window| window.closes_after(at)).max();
    let mut end = closes(moment)?;
    for _ in 0..CHAIN {
        match closes(end) {
            Some(later) => end = later,
            None => break,
        }
    }
    Some(end)
}

/// When a window opens next.
#[must_use]
pub fn next_opening(windows: &[Window], moment: Timestamp) -> Option<Timestamp> {
    let openings = windows.iter().flat_map(|window| window.around(moment, AHEAD).map(|(opens, _)| opens));
    openings.filter(|opens| *opens > moment).min()
}

fn parse_days(text: &str) -> Result<[bool; 7], WindowError> {
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once("..").unwrap_or((part, part));
        let (first, last) = (parse_day(first)?, parse_day(last)?);
        let mut day = first;
        loop {
            days[day] = true;
            if day == last {
                break;
            }
            day = (day + 1) % 7;
        }
    }
    Ok(days)
}

fn parse_day(text: &str) -> Result<usize, WindowError> {
    let place = DAYS.iter().position(|(name, _)| name.eq_ignore_ascii_case(text));
    place.ok_or_else(|| WindowError::Day(text.to_owned()))
}

/// `09:00`, in minutes after midnight.
fn parse_time(text: &str) -> Result<u16, WindowError> {
    let bad = || WindowError::Time(text.to_owned());
    let (hour, minute) = text.split_once(':').ok_or_else(bad)?;
    let number = |part: &str| {
        let two = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u16>().ok().filter(|_| two).ok_or_else(bad)
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    let minutes = hour * 60 + minute;
    if minute < 60 && minutes <= DAY_MINUTES { Ok(minutes) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(text: &str) -> Window {
        Window::parse(text).unwrap_or_else(|error| panic!("{text} {error}"))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn until(windows: &[&str], moment: &str) -> Option<String> {
        let windows: Vec<Window> = windows.iter().map(|text| window(text)).collect();
        open_until(&windows, at(moment)).map(|t| t.to_string())
    }

    #[test]
    fn office_hours_in_summer_and_winter() {
        let office = ["Mon..Fri 09:00-17:00 Europe/Berlin"];
        // a Wednesday in winter: one hour ahead of UTC; in summer two
        assert_eq!(until(&office, "2026-01-14T07:59:59Z"), None);
        assert_eq!(until(&office, "2026-01-14T08:00:00Z").as_deref(), Some("2026-01-14T16:00:00Z"));
        assert_eq!(until(&office, "2026-01-14T16:00:00Z"), None);
        assert_eq!(until(&office, "2026-07-15T07:00:00Z").as_deref(), Some("2026-07-15T15:00:00Z"));
        assert_eq!(until(&office, "2026-07-18T10:00:00Z"), None, "a Saturday");
        let opens = next_opening(&[window(office[0])], at("2026-07-17T15:00:00Z"));
        assert_eq!(opens, Some(at("2026-07-20T07:00:00Z")), "the next Monday");
    }

    #[test]
    fn nights_across_the_change_of_the_clocks() {
        // Berlin leaves 02:00 to 03:00 out on 29 March 2026, and has it twice on 25 October 2026
        let night = ["Sat 22:00-06:00 Europe/Berlin"];
        assert_eq!(until(&night, "2026-03-28T22:00:00Z").as_deref(), Some("2026-03-29T04:00:00Z"), "seven hours");
        assert_eq!(until(&night, "2026-10-24T22:00:00Z").as_deref(), Some("2026-10-25T05:00:00Z"), "nine hours");
        let gap = ["Sun 02:15-02:45 Europe/Berlin"];
        assert_eq!(until(&gap, "2026-03-29T01:14:59Z"), None);
        assert_eq!(until(&gap, "2026-03-29T01:15:00Z").as_deref(), Some("2026-03-29T01:45:00Z"), "behind the gap");
        assert_eq!(until(&gap, "2026-10-25T00:20:00Z").as_deref(), Some("2026-10-25T00:45:00Z"), "the first of two");
        assert_eq!(until(&gap, "2026-10-25T01:20:00Z"), None, "and not the second");
    }

    #[test]
    fn windows_that_follow_each_other_are_one() {
        let parts = ["Mon 09:00-12:00 UTC", "Mon 12:00-17:00 UTC", "Mon 18:00-19:00 UTC"];
        assert_eq!(until(&parts, "2026-11-23T10:00:00Z").as_deref(), Some("2026-11-23T17:00:00Z"));
        let always = ["00:00-24:00 UTC"];
        let end = until(&always, "2026-11-23T10:00:00Z").expect("it is open");
        assert!(end.as_str() > "2027-11-24", "it never closes within a year: {end}");
    }

    #[test]
    fn what_is_no_window_says_why() {
        for (text, error) in [
            ("", WindowError::Form),
            ("Mon..Fri", WindowError::Form),
            ("Mon..Fri 09:00-17:00", WindowError::Form),
            ("Mon..Fri 09:00 Europe/Berlin", WindowError::Form),
            ("Mon..Fri 09:00-17:00 Europe/Berlin x", WindowError::Form),
            ("Mon..Fry 09:00-17:00 UTC", WindowError::Day("Fry".into())),
            ("Mon, 09:00-17:00 UTC", WindowError::Day(String::new())),
            ("Mon 9:00-17:00 UTC", WindowError::Time("9:00".into())),
            ("Mon 09:00-25:00 UTC", WindowError::Time("25:00".into())),
            ("Mon 09:60-17:00 UTC", WindowError::Time("09:60".into())),
            ("Mon 09:00-09:00 UTC", WindowError::Never),
            ("Mon 24:00-09:00 UTC", WindowError::Never),
            ("Mon 09:00-17:00 Europe/Berlinn", WindowError::Zone("Europe/Berlinn".into())),
        ] {
            assert_eq!(Window::parse(text).err(), Some(error), "{text}");
        }
        assert_eq!(window(" mon..WED,fri   09:00-17:00 UTC").to_string(), "mon..WED,fri 09:00-17:00 UTC");
    }

    #[test]
    fn overlaps_are_seen_across_midnight_and_sunday() {
        let overlap = |a: &str, b: &str| window(a).overlaps(&window(b));
        assert!(overlap("Mon..Fri 09:00-17:00 UTC", "Fri 16:59-18:00 UTC"));
        assert!(overlap("Sun 22:00-06:00 UTC", "Mon 05:00-07:00 UTC"));
        assert!(!overlap("Mon..Fri 09:00-17:00 UTC", "Fri 17:00-18:00 UTC"));
        assert!(!overlap("Mon 09:00-17:00 UTC", "Mon 09:00-17:00 Europe/Berlin"), "other clocks are not compared");
    }

    proptest! {
        /// A window that is open closes later and not open a moment before it opens; against the local clock, away from
        /// its changes.
        #[test]
        fn open_means_what_the_clock_says(
            seconds in 1_767_225_600i64..1_893_456_000,
            zone in proptest::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]),
            from in 0u16..1440, length in 1u16..1440, days in 1u8..128,
        ) {
            let moment = Timestamp::from_second(seconds).expect("a time");
            let to = (from + length) % DAY_MINUTES;
            let names: Vec<&str> = (0..7).filter(|d| days & (1 << d) != 0).map(|d| DAYS[d].0).collect();
            let clock = |m: u16| format!("{:02}:{:02}", m / 60, m % 60);
            let window = window(&format!("{} {}-{} {zone}", names.join(","), clock(from), clock(to)));
            let local = moment.to_zoned(window.zone.clone());
            let near = |hours: i64| (moment + jiff::SignedDuration::from_hours(hours)).to_zoned(window.zone.clone()).offset();
            prop_assume!((-30..=30).all(|hours| near(hours) == local.offset()));
            let minute = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).expect("small");
            let today = usize::try_from(local.weekday().to_monday_zero_offset()).expect("small");
            let on = |day: usize| days & (1 << day) != 0;
            let open = if to > from {
                on(today) && from <= minute && minute < to
            } else {
                (on(today) && minute >= from) || (on((today + 6) % 7) && minute < to)
            };
            let until = open_until(std::slice::from_ref(&window), moment);
            prop_assert_eq!(until.is_some(), open);
            prop_assert!(until.is_none_or(|until| until > moment));
            let next = next_opening(std::slice::from_ref(&window), moment).expect("every window opens again");
            prop_assert!(next > moment && open_until(&[window], next).is_some());
        }
    }
}
