//! Times as records keep them: microseconds since 1970.

use time::OffsetDateTime;

use crate::StoreError;

/// The time now, with nothing that a record would lose: what is told of it before a restart and
/// after is the same.
pub fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(now.nanosecond() / 1_000 * 1_000).unwrap_or(now)
}

pub(crate) fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX)
}

pub(crate) fn from_micros(micros: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
        .map_err(|_| StoreError::Damaged("time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_the_whole_time() {
        let now = now();
        assert_eq!(from_micros(micros(now)).unwrap(), now);
    }
}
