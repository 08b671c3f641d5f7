//! From texts to policies that can be trusted to mean what they say.

use std::{collections::HashMap, fmt};

use cedar_policy::{Effect, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use mantled_mask::Masks;
use miette::Diagnostic;

use crate::{Policies, index::Index};

/// The schema, in Cedar's own syntax.
pub const SCHEMA: &str = include_str!("mantled.cedarschema");

/// Annotations that mean something.
const ANNOTATIONS: [&str; 3] = ["id", "description", "mask"];

/// Annotations that will.
const LATER: [&str; 2] = ["approval", "record"];

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The text's name.
    pub file: String,
    /// The line, from 1; 0: of the whole.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}\n  hint: {}",
            self.file, self.line, self.message, self.hint
        )
    }
}

/// One text while it is read.
struct Source<'a> {
    name: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn mistake(&self, offset: Option<usize>, message: String, hint: &str) -> Mistake {
        let line = offset.map_or(0, |offset| {
            let before = self.text.get(..offset).unwrap_or(self.text);
            before.matches('\n').count() + 1
        });
        Mistake {
            file: self.name.to_owned(),
            line,
            message,
            hint: hint.to_owned(),
        }
    }

    /// What Cedar has found, and where.
    fn found(&self, found: &dyn Diagnostic, hint: &str) -> Mistake {
        let offset = found
            .labels()
            .and_then(|mut labels| labels.next())
            .map(|label| label.offset());
        let help = found.help().map(|help| help.to_string());
        self.mistake(offset, found.to_string(), help.as_deref().unwrap_or(hint))
    }
}

impl Policies {
    /// Reads texts, each with its name, and checks them against the schema.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(texts: &[(String, String)]) -> Result<Self, Vec<Mistake>> {
        let (schema, _) =
            Schema::from_cedarschema_str(SCHEMA).expect("the schema is checked by a test");
        let validator = Validator::new(schema.clone());
        let mut mistakes = Vec::new();
        let mut policies: Vec<Policy> = Vec::new();
        let mut known: HashMap<String, &str> = HashMap::new();
        for (name, text) in texts {
            let source = Source { name, text };
            match source.parse() {
                Ok(parsed) => {
                    for policy in parsed {
                        let id = policy.id().to_string();
                        if let Some(other) = known.insert(id.clone(), name) {
                            mistakes.push(source.mistake(
                                None,
                                format!(
                                    "there are two policies with @id(\"{id}\"), one in {other}"
                                ),
                                "give each its own",
                            ));
                        }
                        mistakes.extend(source.check(&policy));
                        policies.push(policy);
                    }
                }
                Err(found) => mistakes.extend(found),
            }
            let own = policies
                .iter()
                .filter(|policy| known.get(&policy.id().to_string()) == Some(&name.as_str()));
            if let Ok(set) = PolicySet::from_policies(own.cloned()) {
                let result = validator.validate(&set, ValidationMode::Strict);
                mistakes.extend(result.validation_errors().map(|found| {
                    source.found(found, "`mantled policy schema` prints what there is")
                }));
                // What cannot ever apply is a mistake as well: nobody writes it on purpose.
                mistakes.extend(result.validation_warnings().map(|found| {
                    source.found(found, "`mantled policy schema` prints what there is")
                }));
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let actions = schema
            .action_entities()
            .expect("the schema is checked by a test");
        Ok(Self {
            index: Index::new(policies, &schema),
            actions,
            schema,
        })
    }
}

impl Source<'_> {
    /// The policies of this text, each with the id that it is to have in records.
    fn parse(&self) -> Result<Vec<Policy>, Vec<Mistake>> {
        let set: PolicySet = self.text.parse().map_err(|errors| {
            let errors: cedar_policy::ParseErrors = errors;
            errors
                .iter()
                .map(|error| self.found(error, "see https://docs.cedarpolicy.com for the syntax"))
                .collect::<Vec<_>>()
        })?;
        if set.templates().next().is_some() {
            let hint = "write the entity in place of ?principal or ?resource";
            return Err(vec![self.mistake(
                None,
                "templates are not supported".to_owned(),
                hint,
            )]);
        }
        let stem = self.name.rsplit('/').next().unwrap_or(self.name);
        let stem = stem.strip_suffix(".cedar").unwrap_or(stem);
        let mut policies: Vec<Policy> = set.policies().cloned().collect();
        // policy0, policy1, ...: their order in the text.
        policies.sort_by_key(|policy| {
            let id = policy.id().to_string();
            id.trim_start_matches("policy").parse::<usize>().ok()
        });
        Ok(policies
            .into_iter()
            .enumerate()
            .map(|(place, policy)| {
                let id = match policy.annotation("id") {
                    Some(id) => id.to_owned(),
                    None => format!("{stem}#{}", place + 1),
                };
                policy.new_id(PolicyId::new(id))
            })
            .collect())
    }

    /// What Cedar lets pass and this does not: an annotation without effect would be taken for one
    /// with.
    fn check(&self, policy: &Policy) -> Vec<Mistake> {
        let place = policy
            .annotation("id")
            .and_then(|id| self.text.find(&format!("\"{id}\"")));
        policy
            .annotations()
            .filter(|(name, _)| !ANNOTATIONS.contains(name))
            .map(|(name, _)| {
                if LATER.contains(&name) {
                    let message = format!("@{name} is not available yet");
                    self.mistake(place, message, "remove it, or forbid what needs it")
                } else {
                    let message = format!("@{name} means nothing here");
                    self.mistake(
                        place,
                        message,
                        "annotations are @id, @description and @mask",
                    )
                }
            })
            .chain(self.check_masks(policy, place))
            .collect()
    }

    /// Masks that cannot be read, or that nothing would come of.
    fn check_masks(&self, policy: &Policy, place: Option<usize>) -> Option<Mistake> {
        let masks = policy.annotation("mask")?;
        if policy.effect() == Effect::Forbid {
            let message =
                "@mask says what is masked in what a policy permits, and this one forbids";
            return Some(self.mistake(place, message.to_owned(), "write it before a permit"));
        }
        let mistake = Masks::parse(masks).err()?;
        let message = format!("@mask: {mistake}");
        let hint =
            "for example @mask(\"email, card=fixed, column:users.ssn, field:password=null\")";
        Some(self.mistake(place, message, hint))
    }
}

/// What a policy that was checked masks.
pub(crate) fn masks(policy: &Policy) -> Option<Masks> {
    Masks::parse(policy.annotation("mask")?).ok()
}
