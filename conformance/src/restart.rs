//! How a store is closed and opened again.

use std::{borrow::Cow, fmt, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{fleet::BoxError, options::Options, wait::Failure};

/// Closes a store of which nothing is open any more.
pub(crate) type Close = dyn Fn(Options) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync;

/// How the suite closes a store and opens it again, to see that what was
/// acknowledged is still there: see
/// [`Suite::with_restart`](crate::Suite::with_restart).
#[derive(Clone)]
pub struct Restart(pub(crate) How);

#[derive(Clone)]
pub(crate) enum How {
    By(Arc<Close>),
    Not(Cow<'static, str>),
}

impl Restart {
    /// The store is closed when its last handle is dropped, as a file is, or the last
    /// process that has it open ends. What [`Options::store`] keeps is dropped, too.
    #[must_use]
    pub fn by_handles() -> Self {
        Self::by(|_| async { Ok(()) })
    }

    /// `restart` closes the store, or restarts the server that has it, and returns once
    /// it can be opened again. All instances have ended by then, and no other case runs,
    /// so that the server may be that of all cases.
    pub fn by<F>(restart: impl Fn(Options) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Self(How::By(Arc::new(move |options| restart(options).boxed())))
    }

    /// The store cannot be closed by the suite, and why: the cases that would are
    /// ignored with this reason in front.
    pub fn none(why: impl Into<Cow<'static, str>>) -> Self {
        Self(How::Not(why.into()))
    }
}

impl fmt::Debug for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            How::By(_) => f.write_str("Restart::by(..)"),
            How::Not(why) => f.debug_tuple("Restart::none").field(why).finish(),
        }
    }
}

/// Closes the store of these options, after its instances have ended.
pub(crate) async fn close(restart: Option<&Restart>, options: &Options) -> Result<(), Failure> {
    let Some(Restart(How::By(restart))) = restart else {
        return Err(Failure::new(
            "the test file says that the store is durable (`Capabilities::durable`), and not how \
             it is closed and opened again: add `.with_restart(..)` to the `Suite`, with \
             `Restart::by_handles()` for a file, or `Restart::by(..)` for a server",
        ));
    };
    let forgotten = options.clone();
    tokio::task::spawn_blocking(move || forgotten.forget_store())
        .await
        .map_err(Failure::new)?;
    let closed = restart(options.clone()).await;
    closed.map_err(|error| {
        let why = crate::wait::chain(error.as_ref());
        Failure::new(format!("the store could not be closed: {why}"))
    })
}

/// Cases share their servers; one that restarts a server has it alone.
static SERVERS: RwLock<()> = RwLock::new(());

/// Held while a case runs.
pub(crate) enum Turn {
    Shared(#[expect(dead_code, reason = "its end is the message")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "its end is the message")] RwLockWriteGuard<'static, ()>),
}

impl Turn {
    pub(crate) fn wait(alone: bool) -> Self {
        match alone {
            true => Self::Alone(SERVERS.write()),
            false => Self::Shared(SERVERS.read()),
        }
    }
}
