//! Records that were decoded just now: calls of one session come close together,
//! and its record seldom changes between them.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{error::Result, id::SessionKey, session::SessionRecord};

/// Records that are kept, each until another session takes its place.
const SLOTS: usize = 512;
/// A larger record, as one with much state is, is decoded each time.
const MAX_BYTES: usize = 4096;

/// Stands for nothing but the work: what it returns is decoded from these very
/// bytes, now or earlier.
pub(super) struct Records(Vec<Mutex<Option<Decoded>>>);

struct Decoded {
    bytes: Bytes,
    record: Arc<SessionRecord>,
}

impl Records {
    pub(super) fn new() -> Self {
        Self((0..SLOTS).map(|_| Mutex::default()).collect())
    }

    /// # Errors
    /// As [`SessionRecord::decode`].
    pub(super) fn decode(
        &self,
        session: &SessionKey,
        record: &Bytes,
    ) -> Result<Arc<SessionRecord>> {
        let slot = usize::from(u16::from_ne_bytes([session.0[2], session.0[3]])) % SLOTS;
        let mut slot = self.0[slot].lock();
        if let Some(decoded) = &*slot
            && decoded.bytes == record
        {
            return Ok(Arc::clone(&decoded.record));
        }
        let decoded = Arc::new(SessionRecord::decode(record)?);
        *slot = (record.len() <= MAX_BYTES).then(|| Decoded {
            // Not the buffer that the record came in, which may be larger.
            bytes: Bytes::copy_from_slice(record),
            record: Arc::clone(&decoded),
        });
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_decoded_is_what_the_bytes_say_and_no_more_is_kept_than_fits() {
        let records = Records::new();
        let session = SessionKey([7; 32]);
        let mut record = SessionRecord::default();
        let mut decoded = |state| {
            record.state = state;
            let bytes = record.encode().unwrap();
            let found = records.decode(&session, &bytes).unwrap();
            assert_eq!(*found, record);
            let again = records.decode(&session, &bytes).unwrap();
            assert_eq!(*again, record);
            Arc::ptr_eq(&found, &again)
        };
        assert!(decoded(json!(1)));
        assert!(decoded(json!(2)), "a changed record is another one");
        assert!(!decoded(json!("x".repeat(MAX_BYTES))), "too large to keep");
        assert!(decoded(json!(1)));
        let error = records.decode(&session, &Bytes::from_static(b"?"));
        assert!(error.is_err());
    }
}
