//! JSON pointers (RFC 6901).

use std::fmt;

use super::text::Text;
use super::value::Value;

/// A path into a document; without tokens, the whole document.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pointer {
    tokens: Vec<String>,
}

/// Why a text is no pointer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PointerError {
    #[error("the pointer {0:?} has to begin with '/'")]
    NoSlash(String),
    #[error("the pointer {0:?} has a '~' that is neither '~0' nor '~1'")]
    Tilde(String),
}

/// What a pointer leads to is not there; the reason says where the path ends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Missing {
    pub reason: String,
}

/// A place by positions: of items in their arrays, of slots in their objects. Valid until something
/// is inserted or removed above it.
pub(super) type Address = Vec<usize>;

/// Where an added value goes.
pub(super) enum Spot {
    /// To the place of what is there.
    Existing(Address),
    Item {
        array: Address,
        index: usize,
    },
    Member {
        object: Address,
        key: Text,
    },
}

impl Pointer {
    /// Reads a pointer as it stands in a patch: `""`, `/a/b~1c/0`.
    ///
    /// # Errors
    /// It doesn't begin with a slash, or has a tilde that is no escape.
    pub fn parse(text: &str) -> Result<Pointer, PointerError> {
        if text.is_empty() {
            return Ok(Pointer::default());
        }
        let inner = text
            .strip_prefix('/')
            .ok_or_else(|| PointerError::NoSlash(text.to_owned()))?;
        let tokens: Option<Vec<String>> = inner.split('/').map(unescaped).collect();
        let tokens = tokens.ok_or_else(|| PointerError::Tilde(text.to_owned()))?;
        Ok(Pointer { tokens })
    }

    /// The names and positions on the way, unescaped.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The pointer to what holds what this one leads to; none for the whole document.
    pub fn above(&self) -> Option<Pointer> {
        let (_, above) = self.tokens.split_last()?;
        Some(Pointer {
            tokens: above.to_vec(),
        })
    }

    /// Does the path go through what this one leads to, and further?
    pub(super) fn is_above(&self, other: &Pointer) -> bool {
        other.tokens.len() > self.tokens.len() && other.tokens.starts_with(&self.tokens)
    }

    /// The pointer to what is put in this spot of its: a `-` becomes a position.
    pub(super) fn target(&self, spot: &Spot) -> Pointer {
        let mut target = self.clone();
        if let (Spot::Item { index, .. }, Some(last)) = (spot, target.tokens.last_mut()) {
            *last = index.to_string();
        }
        target
    }

    /// The value that the pointer leads to.
    ///
    /// # Errors
    /// There is none.
    pub fn resolve<'a>(&self, root: &'a Value) -> Result<&'a Value, Missing> {
        Ok(value_at(root, &self.locate(root)?))
    }

    pub(super) fn locate(&self, root: &Value) -> Result<Address, Missing> {
        self.locate_first(root, self.tokens.len())
    }

    /// Where a value would be added.
    pub(super) fn spot(&self, root: &Value) -> Result<Spot, Missing> {
        let Some(last) = self.tokens.last() else {
            return Ok(Spot::Existing(Address::new()));
        };
        let above = self.tokens.len() - 1;
        let mut address = self.locate_first(root, above)?;
        match value_at(root, &address) {
            Value::Array(array) => {
                let end = array.items.len();
                let index = match last.as_str() {
                    "-" => Some(end),
                    _ => array_index(last).filter(|&index| index <= end),
                };
                let index = index.ok_or_else(|| self.no_item(above, end))?;
                Ok(Spot::Item {
                    array: address,
                    index,
                })
            }
            Value::Object(object) => Ok(match object.slot_named(last) {
                Some(slot) => {
                    address.push(slot);
                    Spot::Existing(address)
                }
                None => Spot::Member {
                    object: address,
                    key: Text::new(last),
                },
            }),
            scalar => Err(self.no_container(above, scalar)),
        }
    }

    fn locate_first(&self, root: &Value, count: usize) -> Result<Address, Missing> {
        let mut value = root;
        let mut address = Address::with_capacity(count + 1);
        for (above, token) in self.tokens[..count].iter().enumerate() {
            let (position, next) = match value {
                Value::Array(array) => array_index(token)
                    .and_then(|index| Some((index, array.items.get(index)?)))
                    .ok_or_else(|| self.no_item(above, array.items.len()))?,
                Value::Object(object) => object
                    .slot_named(token)
                    .map(|slot| (slot, &object.member(slot).value))
                    .ok_or_else(|| self.no_member(above))?,
                scalar => return Err(self.no_container(above, scalar)),
            };
            address.push(position);
            value = next;
        }
        Ok(address)
    }

    #[cold]
    fn no_member(&self, above: usize) -> Missing {
        let name = &self.tokens[above];
        self.missing(above, |whose| format!("{whose} has no member {name:?}"))
    }

    #[cold]
    fn no_item(&self, above: usize, count: usize) -> Missing {
        let token = &self.tokens[above];
        self.missing(above, |whose| match (token.as_str(), array_index(token)) {
            ("-", _) | (_, Some(_)) => {
                format!("{whose} is an array of {count} and has no item {token}")
            }
            _ => format!("{whose} is an array, and {token:?} is no position in it"),
        })
    }

    #[cold]
    fn no_container(&self, above: usize, found: &Value) -> Missing {
        let kind = found.kind();
        self.missing(above, |whose| {
            format!("{whose} is {kind}, nothing is in it")
        })
    }

    fn missing(&self, above: usize, reason: impl Fn(&str) -> String) -> Missing {
        let tokens = self.tokens[..above].to_vec();
        let whose = match above {
            0 => "the document".to_owned(),
            _ => Pointer { tokens }.to_string(),
        };
        Missing {
            reason: reason(&whose),
        }
    }
}

impl FromIterator<String> for Pointer {
    /// A pointer of unescaped tokens.
    fn from_iter<T: IntoIterator<Item = String>>(tokens: T) -> Pointer {
        Pointer {
            tokens: tokens.into_iter().collect(),
        }
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for token in &self.tokens {
            write!(
                formatter,
                "/{}",
                token.replace('~', "~0").replace('/', "~1")
            )?;
        }
        Ok(())
    }
}

pub(super) fn value_at<'a>(root: &'a Value, address: &[usize]) -> &'a Value {
    address.iter().fold(root, |value, &position| match value {
        Value::Array(array) => &array.items[position],
        Value::Object(object) => &object.member(position).value,
        _ => unreachable!("addresses lead through containers"),
    })
}

pub(super) fn value_at_mut<'a>(root: &'a mut Value, address: &[usize]) -> &'a mut Value {
    address.iter().fold(root, |value, &position| match value {
        Value::Array(array) => &mut array.items[position],
        Value::Object(object) => object.value_mut(position),
        _ => unreachable!("addresses lead through containers"),
    })
}

/// A position in an array: digits, without zeros in front.
fn array_index(token: &str) -> Option<usize> {
    let is_plain = token.bytes().all(|byte| byte.is_ascii_digit());
    let has_zeros = token.len() > 1 && token.starts_with('0');
    (is_plain && !has_zeros).then(|| token.parse().ok())?
}

fn unescaped(token: &str) -> Option<String> {
    let mut parts = token.split('~');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = match part.as_bytes().first()? {
            b'0' => "~",
            b'1' => "/",
            _ => return None,
        };
        name.push_str(rest);
        name.push_str(&part[1..]);
    }
    Some(name)
}
