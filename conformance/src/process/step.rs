//! The arguments of the steps, as they are lent and as they are owned.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId,
    storage::{Beat, Hold, OpenStream},
};
use serde::de::DeserializeOwned;

/// An argument of a step: owned once it has crossed, and lent to the step.
pub(super) trait Argument<'a> {
    /// What is made of it on the other side.
    type Owned: DeserializeOwned;

    fn lend(owned: &'a Self::Owned) -> Self;
}

impl<'a, T: DeserializeOwned> Argument<'a> for &'a [T] {
    type Owned = Vec<T>;

    fn lend(owned: &'a Vec<T>) -> Self {
        owned
    }
}

impl<'a, T: DeserializeOwned> Argument<'a> for &'a T {
    type Owned = T;

    fn lend(owned: &'a T) -> Self {
        owned
    }
}

impl<'a> Argument<'a> for Option<&'a OpenStream> {
    type Owned = Option<OpenStream>;

    fn lend(owned: &'a Option<OpenStream>) -> Self {
        owned.as_ref()
    }
}

macro_rules! values {
    ($($type:ty)+) => {
        $(impl<'a> Argument<'a> for $type {
            type Owned = $type;

            fn lend(owned: &'a $type) -> Self {
                owned.clone()
            }
        })+
    };
}

values!(Bytes Beat Duration Hold InstanceId u64 usize);
