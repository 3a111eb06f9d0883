//! Ids of client requests on the wire. Any instance can tell an id that this
//! fleet has given out in a session from all others, without a store: a client
//! may answer long after everything about its request was removed.

use std::sync::Arc;

use mcp_adapter_core::{RpcId, SessionId};
use sha2::{Digest, Sha256};

/// Keeps these hashes apart from all others of a session's id.
const DOMAIN: &[u8] = b"mcp-adapter-transport/client-request\0";

/// An id made of `unique`, which never repeats in the fleet.
pub(crate) fn wire_id(session: &SessionId, unique: &str) -> Arc<str> {
    format!("{unique}-{:016x}", tag(session, unique)).into()
}

/// Whether [`wire_id`] has made it for this session.
pub(crate) fn is_ours(session: &SessionId, id: &RpcId) -> bool {
    let RpcId::String(id) = id else {
        return false;
    };
    id.rsplit_once('-')
        .is_some_and(|(unique, _)| *wire_id(session, unique) == **id)
}

/// 64 bits that nobody can make who does not know the session's id. Who knows
/// it may use the session anyway.
fn tag(session: &SessionId, unique: &str) -> u64 {
    let mut hash = Sha256::new_with_prefix(DOMAIN);
    // Session ids have no zero bytes, so the two parts cannot be moved.
    hash.update(session.as_str());
    hash.update([0]);
    hash.update(unique);
    let hash: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, e, f, g, h, ..] = hash;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_known_in_their_session_only() {
        let (session, other) = (SessionId::generate(), SessionId::generate());
        let longest = format!("{}-{}", "x".repeat(20), u64::MAX);
        let id = wire_id(&session, &longest);
        assert!(id.len() < 64, "{id}");
        let id = RpcId::String(id);
        assert!(is_ours(&session, &id));
        assert!(!is_ours(&other, &id));
    }

    #[test]
    fn nothing_else_is_taken_for_one() {
        let session = SessionId::generate();
        let id = wire_id(&session, "abc-7").to_string();
        for forged in [
            "",
            "-",
            "abc-7",
            &id[..id.len() - 1],
            &id.to_uppercase(),
            &id.replace("abc-7", "abc-8"),
            &id.replace("abc", "abd"),
            &format!("{id}-0"),
        ] {
            assert!(
                !is_ours(&session, &RpcId::String(forged.into())),
                "{forged}"
            );
        }
        assert!(!is_ours(&session, &RpcId::Number(7)));
    }
}
