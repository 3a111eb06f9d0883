//! Followers that are known while their tails are made.

use std::sync::Arc;

use crate::{
    engine::{Shared, follow::Follow},
    storage::Storage,
};

/// A follow that is on the list while its tail is made, and stays there with the
/// tail: where its caller gives up, or has an error, it goes.
pub(super) struct Listed<'a, S: Storage> {
    shared: &'a Shared<S>,
    follow: Option<Arc<Follow>>,
}

impl<'a, S: Storage> Listed<'a, S> {
    pub(super) fn new(shared: &'a Shared<S>, follow: &Arc<Follow>) -> Self {
        shared.interests.add_follow(follow);
        Self {
            shared,
            follow: Some(Arc::clone(follow)),
        }
    }

    pub(super) fn stays(mut self) {
        self.follow = None;
    }
}

impl<S: Storage> Drop for Listed<'_, S> {
    fn drop(&mut self) {
        if let Some(follow) = &self.follow {
            self.shared.interests.remove_follow(follow);
        }
    }
}
