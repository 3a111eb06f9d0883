//! A handle is one instance: the cases keep that rule, too.

use std::{sync::OnceLock, time::Duration};

use mcp_adapter_core::{
    Error, ErrorKind, InstanceId, PrincipalKey, Result, RpcId, SessionKey, StreamId,
    storage::{
        Append, Beat, Claim, Cursor, Dead, Door, Hold, Knock, NewSession, OpenStream, Place,
        PutRequest, RequestKey, Settle, UpdateSession,
    },
};

/// The instance that asks one handle.
#[derive(Debug, Default)]
pub(super) struct Speaker(OnceLock<InstanceId>);

impl Speaker {
    /// Fails where an argument of a step names another one than those before.
    pub(super) fn hear(&self, operation: &'static str, argument: &impl Speaks) -> Result<()> {
        for me in argument.instances() {
            let first = *self.0.get_or_init(|| me);
            if first != me {
                let why = format!("this case asks the handle of {first:?} for {me:?}");
                return Err(Error::new(ErrorKind::InvalidArgument, operation).with_message(why));
            }
        }
        Ok(())
    }
}

/// An argument of a step, which may say who asks.
pub(super) trait Speaks {
    fn instances(&self) -> Vec<InstanceId> {
        Vec::new()
    }
}

impl Speaks for InstanceId {
    fn instances(&self) -> Vec<InstanceId> {
        vec![*self]
    }
}

impl Speaks for Beat {
    fn instances(&self) -> Vec<InstanceId> {
        vec![self.instance]
    }
}

impl Speaks for Option<&OpenStream> {
    fn instances(&self) -> Vec<InstanceId> {
        self.iter().map(|open| open.owner).collect()
    }
}

impl Speaks for &[Append] {
    fn instances(&self) -> Vec<InstanceId> {
        let of = |append: &Append| match append.place {
            Place::Owned { owner, .. } => owner,
            Place::Shared { writer, .. } => writer,
        };
        self.iter().map(of).collect()
    }
}

impl Speaks for &[PutRequest] {
    fn instances(&self) -> Vec<InstanceId> {
        self.iter().map(|put| put.owner).collect()
    }
}

macro_rules! silent {
    ($($type:ty)+) => { $(impl Speaks for $type {})+ };
}

silent! {
    &NewSession &SessionKey &PrincipalKey &UpdateSession &StreamId &RpcId
    &[Cursor] &[Settle] &[RequestKey] &[Claim] &[Dead] &[(Door, Knock)]
    Hold Duration u64 usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_handle_is_one_instance() {
        let speaker = Speaker::default();
        let (one, other) = (InstanceId(1), InstanceId(2));
        let beat = |instance| Beat { instance, count: 1 };
        assert!(speaker.hear("attach", &one).is_ok());
        assert!(speaker.hear("heartbeat", &beat(one)).is_ok());
        assert!(speaker.hear("shrink", &7_u64).is_ok());
        let refused = speaker.hear("heartbeat", &beat(other)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    }
}
