//! What chat and text completions share of their requests.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use utoipa::ToSchema;

use super::super::json::REFUSED;

/// A field of the OpenAI or vLLM API that this server does not have. What asks for nothing (null, false, an empty list, `"none"`,
/// `"auto"`, a type of plain text) passes; everything else is refused by name, never ignored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refused;

impl<'de> Deserialize<'de> for Refused {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RefusedVisitor)
    }
}

struct RefusedVisitor;

fn refuse<E: serde::de::Error>() -> Result<Refused, E> {
    Err(E::custom(format_args!("{REFUSED}not supported by this server; leave it out")))
}

impl<'de> Visitor<'de> for RefusedVisitor {
    type Value = Refused;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nothing")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Refused, E> {
        Ok(Refused)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Refused, E> {
        if value { refuse() } else { Ok(Refused) }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Refused, E> {
        if matches!(value, "none" | "auto" | "") { Ok(Refused) } else { refuse() }
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Refused, E> {
        refuse()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Refused, E> {
        refuse()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Refused, E> {
        refuse()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Refused, A::Error> {
        match seq.next_element::<IgnoredAny>()? {
            Some(_) => refuse(),
            None => Ok(Refused),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Refused, A::Error> {
        let mut plain = true;
        while let Some(key) = map.next_key::<String>()? {
            plain &= key == "type" && map.next_value::<String>().is_ok_and(|value| value == "text");
            if !plain {
                return refuse();
            }
        }
        Ok(Refused)
    }
}

/// A string or several.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(value_type = Vec<String>)]
pub struct Strings(pub Vec<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringsVisitor;
        impl<'de> Visitor<'de> for StringsVisitor {
            type Value = Strings;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Strings, E> {
                Ok(Strings(vec![value.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strings, A::Error> {
                let mut strings = Vec::new();
                while let Some(string) = seq.next_element()? {
                    strings.push(string);
                }
                Ok(Strings(strings))
            }
        }
        deserializer.deserialize_any(StringsVisitor)
    }
}

/// Token ids, as strings of digits, with what is added to their logits.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(value_type = std::collections::HashMap<String, f64>)]
pub struct LogitBias(pub Vec<(u32, f32)>);

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = BTreeMap::<String, f64>::deserialize(deserializer)?;
        let parse = |(id, bias): (String, f64)| match id.parse::<u32>() {
            Ok(id) if (-100.0..=100.0).contains(&bias) => Ok((id, bias as f32)),
            Ok(_) => Err(D::Error::custom(format_args!("the bias {bias} of token {id} is not between -100 and 100"))),
            Err(_) => Err(D::Error::custom(format_args!("{:?} is not a token id", super::super::error::shorten(&id)))),
        };
        entries.into_iter().map(parse).collect::<Result<_, _>>().map(LogitBias)
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "fields without effect are read by serde alone")]
pub struct StreamOptions {
    /// A last chunk with `usage` and no choices.
    #[serde(default)]
    pub include_usage: Option<bool>,
    /// Accepted, without effect.
    #[serde(default)]
    #[schema(ignore)]
    pub include_obfuscation: Option<bool>,
    #[serde(default)]
    #[schema(ignore)]
    pub continuous_usage_stats: Refused,
}

/// Fields of both requests as one struct each: serde can't both flatten and refuse unknown fields.
macro_rules! completion_request {
    ($(#[$about:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* } refused { $($refused:ident)* }) => {
        $(#[$about])*
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "refused fields and those without effect are read by serde alone")]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            /// A served name; the server's model when absent.
            pub model: Option<String>,
            /// Completions of a prompt.
            #[schema(minimum = 1, default = 1)]
            pub n: Option<usize>,
            /// 0 is greedy.
            #[schema(minimum = 0.0, default = 1.0)]
            pub temperature: Option<f64>,
            #[schema(maximum = 1.0, default = 1.0)]
            pub top_p: Option<f64>,
            /// 0 or -1 is off.
            pub top_k: Option<i64>,
            pub min_p: Option<f64>,
            #[schema(default = 1.0)]
            pub repetition_penalty: Option<f64>,
            #[schema(minimum = -2.0, maximum = 2.0, default = 0.0)]
            pub presence_penalty: Option<f64>,
            #[schema(minimum = -2.0, maximum = 2.0, default = 0.0)]
            pub frequency_penalty: Option<f64>,
            pub logit_bias: Option<$crate::api::openai::fields::LogitBias>,
            pub max_tokens: Option<usize>,
            pub min_tokens: Option<usize>,
            /// The text ends before the first of them.
            pub stop: Option<$crate::api::openai::fields::Strings>,
            pub stop_token_ids: Option<Vec<u32>>,
            pub ignore_eos: Option<bool>,
            /// Drawn when absent.
            pub seed: Option<i64>,
            /// Server-sent events instead of one reply.
            pub stream: Option<bool>,
            pub stream_options: Option<$crate::api::openai::fields::StreamOptions>,
            /// Leave control tokens out of the text, which is the default.
            pub skip_special_tokens: Option<bool>,
            /// Add `prompt_token_ids` and `token_ids` to the reply.
            pub return_token_ids: Option<bool>,
            /// Name tokens as `token_id:123` in logprobs.
            pub return_tokens_as_token_ids: Option<bool>,
            /// Accepted, without effect.
            pub user: Option<String>,
            /// Accepted, without effect.
            pub metadata: Option<std::collections::BTreeMap<String, String>>,
            $(#[serde(default)] #[schema(ignore)] pub $refused: $crate::api::openai::fields::Refused,)*
            #[serde(default)] #[schema(ignore)] pub add_special_tokens: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub allowed_token_ids: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub bad_words: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub cache_salt: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub echo: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub guided_choice: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub guided_grammar: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub guided_json: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub guided_regex: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub include_stop_str_in_output: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub length_penalty: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub logits_processors: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub logprob_token_ids: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub priority: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub prompt_logprobs: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub repetition_detection: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub request_id: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub response_format: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub structured_outputs: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub truncate_prompt_tokens: $crate::api::openai::fields::Refused,
            #[serde(default)] #[schema(ignore)] pub use_beam_search: $crate::api::openai::fields::Refused,
        }

        impl $name {
            fn common(&mut self) -> $crate::api::openai::fields::Common {
                $crate::api::openai::fields::Common {
                    n: self.n.unwrap_or(1),
                    sampling: $crate::rollout::request::SamplingBody {
                        temperature: self.temperature,
                        top_p: self.top_p,
                        top_k: self.top_k,
                        min_p: self.min_p,
                        repetition_penalty: self.repetition_penalty,
                        max_tokens: self.max_tokens,
                        min_tokens: self.min_tokens,
                        stop: self.stop.take().map(|stop| $crate::rollout::request::StopBody::Many(stop.0)),
                        stop_token_ids: self.stop_token_ids.take(),
                        ignore_eos: self.ignore_eos,
                    },
                    presence_penalty: self.presence_penalty.unwrap_or(0.0),
                    frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
                    logit_bias: self.logit_bias.take().unwrap_or_default().0,
                    seed: self.seed,
                    stream: self.stream.unwrap_or(false),
                    stream_options: self.stream_options,
                    skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
                    return_token_ids: self.return_token_ids.unwrap_or(false),
                    return_tokens_as_token_ids: self.return_tokens_as_token_ids.unwrap_or(false),
                }
            }
        }
    };
}
pub(super) use completion_request;

/// The fields of [`completion_request`] in one type.
#[derive(Debug)]
pub struct Common {
    pub n: usize,
    pub sampling: crate::rollout::request::SamplingBody,
    pub presence_penalty: f64,
    pub frequency_penalty: f64,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<i64>,
    pub stream: bool,
    pub stream_options: Option<StreamOptions>,
    pub skip_special_tokens: bool,
    pub return_token_ids: bool,
    pub return_tokens_as_token_ids: bool,
}
