//! Serde that does not stop at the first mistake.
//!
//! A derived `Deserialize` gives up where a value has the wrong type. [`Field`] catches that and
//! keeps the place instead, and [`Table`] keeps the keys that its type does not know; so reading a
//! well-formed document always succeeds, and [`Reader`](super::reader::Reader) tells every mistake.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::StrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use toml::Spanned;

/// Bytes of the document, from and to.
pub(super) type Span = Range<usize>;

/// A value and where it was typed.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// The value of a key that may be missing, or be of another type than `T`.
#[derive(Debug, Default)]
pub(super) enum Field<T> {
    #[default]
    Absent,
    Wrong(Span),
    Given(At<T>),
}

impl<T> Field<T> {
    /// Where the value stands, right or wrong; `None` if there is none.
    pub(super) fn span(&self) -> Option<Span> {
        match self {
            Self::Absent => None,
            Self::Wrong(span) => Some(span.clone()),
            Self::Given(at) => Some(at.span.clone()),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Succeeds always, so that the surrounding table goes on with its next key.
        struct Lenient<T>(Option<T>);

        impl<'de, T: Deserialize<'de>> Deserialize<'de> for Lenient<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self(T::deserialize(deserializer).ok()))
            }
        }

        let spanned = Spanned::<Lenient<T>>::deserialize(deserializer)?;
        let span = spanned.span();
        Ok(match spanned.into_inner().0 {
            Some(value) => Self::Given(At { value, span }),
            None => Self::Wrong(span),
        })
    }
}

/// What a [`Field`] can hold: how to say what was expected, and what right would look like.
pub(super) trait Kind {
    fn expected() -> String;
    fn example(key: &str) -> String;
}

impl Kind for String {
    fn expected() -> String {
        "a string".into()
    }

    fn example(key: &str) -> String {
        format!("{key} = \"...\"")
    }
}

impl Kind for i64 {
    fn expected() -> String {
        "a whole number".into()
    }

    fn example(key: &str) -> String {
        format!("{key} = 5432")
    }
}

/// A list of strings.
pub(super) type Strings = Vec<Field<String>>;

impl Kind for Strings {
    fn expected() -> String {
        "a list of strings".into()
    }

    fn example(key: &str) -> String {
        format!("{key} = [\"...\"]")
    }
}

/// A table of keys `T`, with those that `T` does not have.
#[derive(Debug, Default)]
pub(super) struct Table<T> {
    pub(super) keys: T,
    pub(super) unknown: Vec<At<String>>,
    /// The keys that `T` has.
    pub(super) known: &'static [&'static str],
}

impl<T> Kind for Table<T> {
    fn expected() -> String {
        "a table".into()
    }

    fn example(key: &str) -> String {
        format!("[{key}]")
    }
}

/// Tables written `[[name]]`.
pub(super) type Tables<T> = Vec<Field<Table<T>>>;

impl<T> Kind for Tables<T> {
    fn expected() -> String {
        "a list of tables".into()
    }

    fn example(key: &str) -> String {
        format!("[[{key}]]")
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Table<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Table<T>, A::Error> {
                let (mut unknown, mut known) = (Vec::new(), [].as_slice());
                let sieve = Sieve {
                    map,
                    unknown: &mut unknown,
                    known: &mut known,
                };
                let keys = T::deserialize(sieve)?;
                Ok(Table {
                    keys,
                    unknown,
                    known,
                })
            }
        }

        deserializer.deserialize_map(Keys(PhantomData))
    }
}

/// Passes a map's known keys on to a derived `Deserialize`, which is how it tells what it knows.
struct Sieve<'a, A> {
    map: A,
    unknown: &'a mut Vec<At<String>>,
    known: &'a mut &'static [&'static str],
}

impl<'de, A: MapAccess<'de>> Deserializer<'de> for Sieve<'_, A> {
    type Error = A::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        *self.known = fields;
        visitor.visit_map(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, A::Error> {
        Err(A::Error::custom("the keys of a table are a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Sieve<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key::<Spanned<String>>()? {
            if self.known.contains(&key.get_ref().as_str()) {
                return seed
                    .deserialize(StrDeserializer::new(key.get_ref()))
                    .map(Some);
            }
            self.map.next_value::<IgnoredAny>()?;
            let span = key.span();
            self.unknown.push(At {
                value: key.into_inner(),
                span,
            });
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// A closed set of words, each standing for a value.
pub(super) trait Words: Copy + 'static {
    /// What may be written.
    const WORDS: &'static [(&'static str, Self)];
    /// Words that a later release understands, and what to do until then.
    const LATER: &'static [(&'static str, &'static str)] = &[];
}

/// A string that should be one of the words of `T`.
#[derive(Debug)]
pub(super) struct Word<T> {
    pub(super) typed: String,
    meaning: PhantomData<T>,
}

impl<T: Words> Kind for Word<T> {
    fn expected() -> String {
        let words: Vec<_> = T::WORDS
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }

    fn example(key: &str) -> String {
        let word = T::WORDS.first().map_or("...", |(word, _)| word);
        format!("{key} = \"{word}\"")
    }
}

impl<'de, T> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self {
            typed: String::deserialize(deserializer)?,
            meaning: PhantomData,
        })
    }
}

/// A value that no release understands yet: anything.
#[derive(Debug)]
pub(super) struct Later;

impl<'de> Deserialize<'de> for Later {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// One string, or a list of them.
#[derive(Debug)]
pub(super) enum OneOrMore {
    One(String),
    More(Strings),
}

impl Kind for OneOrMore {
    fn expected() -> String {
        "\"system\" or a list of PEM files".into()
    }

    fn example(key: &str) -> String {
        format!("{key} = [\"system\", \"/etc/ssl/site-ca.pem\"]")
    }
}

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: Error>(self, one: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore::One(one.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMore, A::Error> {
                let mut more = Vec::new();
                while let Some(field) = seq.next_element()? {
                    more.push(field);
                }
                Ok(OneOrMore::More(more))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// The schema of a wrapper is that of what it wraps.
macro_rules! schema_of_inner {
    ($($wrapper:ident),*) => {$(
        impl<T: JsonSchema> JsonSchema for $wrapper<T> {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                T::schema_name()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                generator.subschema_for::<T>()
            }
        }
    )*};
}

schema_of_inner!(Field, Table);

impl<T: Words> JsonSchema for Word<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Word".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        json_schema!({ "type": "string", "enum": words })
    }
}

impl JsonSchema for OneOrMore {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OneOrMore".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "const": "system" },
            { "type": "array", "items": { "type": "string" }, "minItems": 1 },
        ]})
    }
}
