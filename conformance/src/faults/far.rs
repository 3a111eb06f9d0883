//! A storage in this process as if it were far away.

use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use mcp_adapter_core::{
    Cancelled, InstanceId, PrincipalKey, Result, RpcId, SessionKey, Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, UpdateSession, Updated,
    },
};

use super::Link;
use crate::storage::storage_steps;

/// A [`Storage`] behind a [`Link`]: its steps wait, fail and lose their replies
/// as the link says, and its wake-ups do not arrive. The engine drives it as a
/// backend behind a round trip, whatever it is.
#[derive(Debug, Clone)]
pub struct Far<S> {
    inner: S,
    link: Link,
}

impl<S: Storage> Far<S> {
    /// Puts `inner` behind `link`.
    #[must_use]
    pub fn new(inner: S, link: &Link) -> Self {
        link.mark_used();
        Self {
            inner,
            link: link.clone(),
        }
    }
}

macro_rules! steps {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
        // A method that is provided must reach the storage, too.
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<S: Storage> Storage for Far<S> {
            fn profile(&self) -> Profile {
                let profile = self.inner.profile();
                if !profile.inline {
                    return profile;
                }
                let mut far = Profile::remote(profile.name, profile.capabilities, 2);
                (far.shards, far.repair) = (profile.shards, profile.repair);
                far
            }

            fn shard_of(&self, session: &SessionKey) -> usize {
                self.inner.shard_of(session)
            }

            // Nobody calls it: what is far away is not inline.
            fn append_inline(&self, append: &Append) -> Result<Appended> {
                self.inner.append_inline(append)
            }

            async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
                self.link.pass("doorbell").await?;
                let (deaf, cut) = (self.link.clone(), self.link.clone());
                let knocks = self.inner.doorbell(me).await?;
                let knocks = knocks.filter_map(move |knock| {
                    let link = deaf.clone();
                    async move {
                        // A frozen link keeps them back, a deaf one drops them.
                        link.pass("doorbell").await.ok()?;
                        let wake = knock.as_ref().is_ok_and(Knock::is_hint);
                        (!(wake && link.is_deaf())).then_some(knock)
                    }
                });
                let cut = async move { cut.cut_off().await };
                Ok(knocks.take_until(Box::pin(cut)).boxed())
            }

            $(async fn $name(&self, $($argument: $type),*) -> Result<$answer> {
                self.link.pass(stringify!($name)).await?;
                // A round trip takes time: others run meanwhile.
                tokio::task::yield_now().await;
                let answer = self.inner.$name($($argument),*).await?;
                self.link.reply(stringify!($name)).await?;
                Ok(answer)
            })+
        }
    };
}

storage_steps!(steps);

#[cfg(test)]
mod tests {
    use mcp_adapter_core::{Capabilities, SessionId};
    use mcp_adapter_memory::MemoryStorage;

    use super::*;

    #[test]
    fn what_is_far_away_is_driven_as_it_asks_but_inline() {
        let profile = Far::new(MemoryStorage::new(), &Link::new()).profile();
        assert!(!profile.inline);
        assert_eq!((profile.shards, profile.repair), (1, false));
        let capabilities = Capabilities::server(Duration::from_millis(1));
        let server = Profile::remote("acme", capabilities, 4).with_shards(3);
        let inner = Sharded(server.with_repair());
        let far = Far::new(inner, &Link::new());
        assert_eq!(format!("{:?}", far.profile()), format!("{:?}", inner.0));
        let session = SessionId::generate().key();
        assert_eq!(far.shard_of(&session), usize::from(session.0[0] % 3));
    }

    /// A storage of several parts.
    #[derive(Debug, Clone, Copy)]
    struct Sharded(Profile);

    macro_rules! steps {
        ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
            #[async_trait]
            impl Storage for Sharded {
                fn profile(&self) -> Profile {
                    self.0
                }

                fn shard_of(&self, session: &SessionKey) -> usize {
                    usize::from(session.0[0] % 3)
                }

                async fn doorbell(
                    &self,
                    _: InstanceId,
                ) -> Result<BoxStream<'static, Result<Knock>>> {
                    Ok(futures::stream::pending().boxed())
                }

                $(async fn $name(&self, $(_: $type),*) -> Result<$answer> {
                    Err(mcp_adapter_core::Error::new(
                        mcp_adapter_core::ErrorKind::Closed,
                        stringify!($name),
                    ))
                })+
            }
        };
    }

    storage_steps!(steps);
}
