//! The time of day as people read it, in the time zone of this process.

/// A point in time, as the wall clock shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    year: i64,
    /// Month, day, hour, minute, second.
    rest: [i32; 5],
    /// Seconds east of Greenwich.
    offset: i64,
}

impl LocalTime {
    /// That of nanoseconds since the epoch.
    pub fn of(time_ns: i64) -> LocalTime {
        let seconds = time_ns.div_euclid(1_000_000_000);
        // SAFETY: all zeros is a valid value of a struct of numbers and a pointer that isn't followed;
        // both arguments point to live values, and the result, if any, to the second.
        let tm = unsafe {
            let mut tm: libc::tm = std::mem::zeroed();
            libc::localtime_r(&raw const seconds, &raw mut tm);
            tm
        };
        LocalTime {
            year: i64::from(tm.tm_year) + 1900,
            rest: [tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec],
            offset: tm.tm_gmtoff,
        }
    }

    /// Local time with its distance from Greenwich, for programs: RFC 3339.
    pub fn rfc3339(&self) -> String {
        let [month, day, hour, minute, second] = self.rest;
        let (sign, away) = (if self.offset < 0 { '-' } else { '+' }, self.offset.abs());
        format!(
            "{:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{sign}{:02}:{:02}",
            self.year,
            away / 3600,
            away / 60 % 60
        )
    }
}

impl std::fmt::Display for LocalTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [month, day, hour, minute, second] = self.rest;
        write!(
            f,
            "{:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}",
            self.year
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_for_people_and_for_programs() {
        let west = LocalTime {
            year: 2026,
            rest: [3, 9, 7, 5, 1],
            offset: -(3 * 3600 + 1800),
        };
        assert_eq!(west.to_string(), "2026-03-09 07:05:01");
        assert_eq!(west.rfc3339(), "2026-03-09T07:05:01-03:30");
    }
}
