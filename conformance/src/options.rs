//! What a case asks of a backend.

use std::{
    any::Any,
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use mcp_adapter_core::Limits;
use parking_lot::Mutex;

use crate::faults::Link;

/// What an instance is to be opened with. Opened twice with the same options,
/// the result is two instances on one store; with other options, stores that
/// have nothing in common.
#[derive(Clone)]
pub struct Options {
    namespace: String,
    limits: Limits,
    link: Link,
    store: Arc<Mutex<Option<Box<dyn Any + Send>>>>,
}

impl Options {
    pub(crate) fn new(namespace: String, limits: Limits) -> Self {
        Self {
            namespace,
            limits,
            link: Link::default(),
            store: Arc::default(),
        }
    }

    /// The same store, another link and other limits.
    pub(crate) fn for_instance(&self, limits: Limits) -> Self {
        Self {
            link: Link::default(),
            limits,
            ..self.clone()
        }
    }

    /// Names the store: a schema, a key prefix, a file. At most 32 bytes of
    /// `[a-z0-9_]`, beginning with a letter, never used before.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The limits and intervals of the instance. They are much shorter than
    /// the defaults.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// For stores that live in this process: the store of this namespace, made
    /// by the first instance that asks for it.
    ///
    /// # Panics
    /// Where two instances ask for stores of different types.
    pub fn store<T: Clone + Send + 'static>(&self, make: impl FnOnce() -> T) -> T {
        let mut store = self.store.lock();
        let store = store.get_or_insert_with(|| Box::new(make()));
        #[expect(clippy::expect_used, reason = "a mistake in the test file")]
        store
            .downcast_ref::<T>()
            .expect("all instances of a store have one type")
            .clone()
    }

    /// Forgets the store in this process, as the end of the process does.
    pub(crate) fn forget_store(&self) {
        let store = self.store.lock().take();
        // Not under the lock: whatever it does.
        drop(store);
    }

    /// For backends behind a connection: the address to connect to instead of
    /// `server`. The suite listens there, forwards, and cuts or freezes the
    /// connections of this one instance where a case is about that.
    ///
    /// # Errors
    /// Where no port can be opened.
    pub fn proxy(&self, server: SocketAddr) -> io::Result<SocketAddr> {
        self.link.proxy(server)
    }

    /// As [`proxy`](Self::proxy), for a URL: the same with another host and port.
    ///
    /// # Errors
    /// Where the URL has no host, or no port can be opened.
    pub fn proxy_url(&self, url: &str) -> io::Result<String> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a URL of a server");
        let (scheme, rest) = url.split_once("://").ok_or_else(invalid)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (format!("{user}@"), host),
            None => (String::new(), authority),
        };
        let default = if scheme.starts_with("redis") {
            6379
        } else {
            5432
        };
        let server = match host.parse::<SocketAddr>() {
            Ok(server) => server,
            Err(_) => {
                let found = if host.contains(':') {
                    host.to_socket_addrs()?.next()
                } else {
                    (host, default).to_socket_addrs()?.next()
                };
                found.ok_or_else(invalid)?
            }
        };
        let proxy = self.proxy(server)?;
        Ok(format!("{scheme}://{user}{proxy}{path}"))
    }

    /// What the suite does to the connections of this instance.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("namespace", &self.namespace)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_goes_through_the_proxy_with_all_that_is_in_it() {
        let options = Options::new("t".into(), Limits::default());
        let proxied = |url: &str| options.proxy_url(url).unwrap();
        let redis = proxied("redis://:p%40ss@127.0.0.1:7000/2?protocol=resp3");
        let addr = options.proxy("127.0.0.1:7000".parse().unwrap()).unwrap();
        assert_eq!(redis, format!("redis://:p%40ss@{addr}/2?protocol=resp3"));
        let postgres = proxied("postgres://postgres@127.0.0.1/db");
        let addr = options.proxy("127.0.0.1:5432".parse().unwrap()).unwrap();
        assert_eq!(postgres, format!("postgres://postgres@{addr}/db"));
        assert!(options.proxy_url("127.0.0.1:7000").is_err());
        assert!(options.link().is_used());
    }

    #[test]
    fn a_store_in_this_process_is_made_once_per_namespace() {
        let options = Options::new("t".into(), Limits::default());
        let other = options.for_instance(Limits::default());
        let store = options.store(|| Arc::new(Mutex::new(1)));
        *other.store(|| Arc::new(Mutex::new(2))).lock() += 10;
        assert_eq!(*store.lock(), 11);
        let apart = Options::new("u".into(), Limits::default());
        assert_eq!(*apart.store(|| Arc::new(Mutex::new(3))).lock(), 3);
    }
}
