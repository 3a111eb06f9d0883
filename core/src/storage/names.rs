//! Names of steps that took effect, so that their late repeats are known.

use super::REMEMBERED;
use crate::id::WaiterToken;

/// The last [`REMEMBERED`] names of one kind, for backends that keep them in one
/// field.
///
/// ```
/// use mcp_adapter_core::{WaiterToken, storage::Names};
///
/// let mut names = Names::default();
/// (1..=10).for_each(|name| names.push(WaiterToken(name)));
/// assert_eq!(names.age(WaiterToken(10)), Some(0));
/// assert_eq!(names.age(WaiterToken(3)), Some(7));
/// assert_eq!(names.age(WaiterToken(2)), None);
/// assert_eq!(Names::from_bytes(&names.to_bytes()), Some(names));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(Vec<WaiterToken>);

impl Names {
    /// Remembers one more; the oldest is forgotten where there are too many.
    pub fn push(&mut self, name: WaiterToken) {
        if self.0.len() == REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(name);
    }

    /// How many came after this one; `None` where it is not among them.
    #[must_use]
    pub fn age(&self, name: WaiterToken) -> Option<u64> {
        let age = self.0.iter().rev().position(|known| *known == name)?;
        Some(age as u64)
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn contains(&self, name: WaiterToken) -> bool {
        self.0.contains(&name)
    }

    /// As bytes: 16 each, big-endian, the oldest first.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|name| name.0.to_be_bytes())
            .collect()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, and `None` from anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let names: Option<Vec<_>> = bytes
            .chunks(size_of::<u128>())
            .map(|name| Some(WaiterToken(u128::from_be_bytes(name.try_into().ok()?))))
            .collect();
        names.filter(|names| names.len() <= REMEMBERED).map(Self)
    }
}
