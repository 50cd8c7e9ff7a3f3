//! The `[curate]` section of a recipe.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::contamination::ContaminationConfig;
use crate::dedup::MinHash;
use crate::dedup::lines::CommonLines;
use crate::dedup::semantic::Semantic;
use crate::filter::{
    C4, DirtyWordsConfig, FineWeb, GopherQuality, GopherRepetition, KlOutliers, NgramCoverage, PiiConfig,
    UrlBlockConfig,
};
use crate::language::{LanguageConfig, is_language};
use crate::mix::MixConfig;
use crate::quality::QualityConfig;
use crate::read::ReadConfig;
use crate::source::REGISTRY;
use crate::{Article, CurateError, Inventory};

/// Where the documents come from and which of them are kept. Every field changes the result.
///
/// What is an `Option` is off when it is absent; `{}` turns it on as it was published. The steps come in the order of the
/// fields from `read` on; the rules above `read` come before `pii`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct CurateConfig {
    /// Folders, files, globs, or the word `cargo-registry` for the sources of the crates that cargo has unpacked.
    pub sources: Vec<String>,
    /// Crate folders (`name-1.2.3`) that `cargo-registry` stands for; all that are there when absent. Naming them makes
    /// the corpus independent of what else is fetched later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crates: Option<Vec<String>>,
    /// A file above this size is dropped as `huge`, in bytes.
    pub max_document_bytes: u64,
    /// Kept text stops here, in bytes; whole sources are kept together. When absent it is 64 MiB, and nothing stops it where
    /// there is `read`. Where there is a `mix`, its size counts instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_corpus_bytes: Option<u64>,
    /// Of the text of a dropped document so much of the beginning is written down with the reason, in bytes: by then it may be
    /// nowhere else. 0 keeps nothing, such as personal data that it was dropped for.
    pub excerpt_bytes: u32,
    /// A document with fewer characters is dropped as `too_short`.
    pub min_characters: u64,
    /// Above this share of control characters a file is `binary`.
    pub max_control_share: f64,
    /// Code with a longer line, in characters, is dropped as `long_lines`.
    pub max_code_line: u64,
    /// Code whose lines are longer on average, in characters, is dropped as `long_lines`.
    pub max_code_mean_line: u64,
    /// A longer run of ASCII without white space (base64, minified code) is `long_lines` in any domain, in characters.
    pub max_unbroken_run: u64,
    /// Below this share of letters among the characters that are not white space, a document is `low_letters`.
    pub min_letter_share: f64,
    /// Above this share of characters in lines seen before, a document is `repeated_lines`.
    pub max_repeated_share: f64,
    /// Drop code that says it was generated, as `generated`.
    pub drop_generated: bool,
    /// The language whose documents are not `multilingual`.
    #[serde(skip_serializing_if = "is_english")]
    pub main_language: String,
    /// Read the sources as WARC, WET, HTML, JSON Lines, Parquet or text, many documents a file; without it each file is one.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub read: Option<ReadConfig>,
    /// Drop documents by their address.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub url_block: Option<UrlBlockConfig>,
    /// Put the main text of HTML in its place.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub extract: Option<Article>,
    /// Find personal data and secrets.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub pii: Option<PiiConfig>,
    /// Tell the language of what is no code, and keep some.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub language: Option<LanguageConfig>,
    /// Keep the newest document of each address.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub url_duplicates: Option<UrlDuplicates>,
    /// Keep one of documents that are nearly the same, by MinHash; the others are dropped as `near_duplicate`.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub near_duplicates: Option<MinHash>,
    /// Take lines out that many documents share; a document with no other lines is dropped as `common_lines`.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub common_lines: Option<CommonLines>,
    /// Texts that repeat themselves. This and the next six are not asked of code.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub gopher_repetition: Option<GopherRepetition>,
    /// Texts that are not made of words.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub gopher_quality: Option<GopherQuality>,
    /// Lines that repeat themselves.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub ngram_coverage: Option<NgramCoverage>,
    /// Lines that are not prose.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub c4: Option<C4>,
    /// Lists and menus.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub fineweb: Option<FineWeb>,
    /// Words of lists.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub dirty_words: Option<DirtyWordsConfig>,
    /// Documents whose words are not those of the corpus.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub kl_outliers: Option<KlOutliers>,
    /// Classifiers, in order. A tag called `maths` or `code` of 0.5 or more also says what a document's domain is.
    #[serde(deserialize_with = "steps", skip_serializing_if = "Vec::is_empty")]
    pub quality: Vec<QualityConfig>,
    /// Keep one of documents that mean the same.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub semantic: Option<Semantic>,
    /// Keep examples of evaluation sets out.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub decontaminate: Option<ContaminationConfig>,
    /// Draw documents in given proportions.
    #[serde(deserialize_with = "step", skip_serializing_if = "Option::is_none")]
    pub mix: Option<MixConfig>,
}

/// Reads the settings of a step. Who writes `false` or `true` is told what to write instead.
fn step<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Option<T>, D::Error> {
    input.deserialize_any(Settings(PhantomData))
}

/// The same of a step that has several.
fn steps<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    step(input).map(Option::unwrap_or_default)
}

struct Settings<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Settings<T> {
    type Value = Option<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the settings of a step, `{}` for its defaults")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Err(E::custom(match value {
            true => "`true` is no setting of a step: write `{}` to turn it on with its defaults",
            false => "`false` is no setting of a step: it is off where its key is left out",
        }))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Some)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        T::deserialize(de::value::SeqAccessDeserializer::new(list)).map(Some)
    }
}

const ENGLISH: &str = "en";

fn is_english(language: &str) -> bool {
    language == ENGLISH
}

/// URL duplicates have no settings.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct UrlDuplicates {}

impl Default for CurateConfig {
    fn default() -> Self {
        Self {
            sources: vec![REGISTRY.to_owned()],
            crates: None,
            max_document_bytes: 1 << 20,
            max_corpus_bytes: None,
            excerpt_bytes: 240,
            min_characters: 64,
            max_control_share: 0.01,
            max_code_line: 5_000,
            max_code_mean_line: 160,
            max_unbroken_run: 2_000,
            min_letter_share: 0.3,
            max_repeated_share: 0.6,
            drop_generated: true,
            main_language: ENGLISH.to_owned(),
            read: None,
            url_block: None,
            extract: None,
            pii: None,
            language: None,
            url_duplicates: None,
            near_duplicates: None,
            common_lines: None,
            gopher_repetition: None,
            gopher_quality: None,
            ngram_coverage: None,
            c4: None,
            fineweb: None,
            dirty_words: None,
            kl_outliers: None,
            quality: Vec::new(),
            semantic: None,
            decontaminate: None,
            mix: None,
        }
    }
}

/// Largest document allowed. A batch of text must stay below the 2 GiB that one Arrow string column can index.
const MAX_DOCUMENT_LIMIT: u64 = 256 << 20;

/// Most that is kept of a dropped document, in bytes.
const MAX_EXCERPT: u64 = 64 << 10;

/// Most text of plain files where the recipe does not say, in bytes.
const FILES_LIMIT: u64 = 64 << 20;

impl CurateConfig {
    /// Where kept text stops, in bytes.
    pub fn corpus_limit(&self) -> Option<u64> {
        self.max_corpus_bytes.or(self.read.is_none().then_some(FILES_LIMIT))
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`CurateError::OutOfRange`] with the key, the value found and the allowed range.
    pub fn validate(&self) -> Result<(), CurateError> {
        if self.sources.is_empty() || self.sources.iter().any(|source| source.trim().is_empty()) {
            return Err(CurateError::OutOfRange {
                key: "sources",
                found: format!("{:?}", self.sources),
                allowed: format!(
                    "a list of one or more folders, files, globs or `{REGISTRY}`, none of them blank"
                ),
            });
        }
        integer("max_document_bytes", self.max_document_bytes, 1, MAX_DOCUMENT_LIMIT)?;
        // A corpus always has room for one document, so the cap alone can never empty it.
        let limit = self.corpus_limit().unwrap_or(u64::MAX);
        integer("max_corpus_bytes", limit, self.max_document_bytes, u64::MAX)?;
        integer("excerpt_bytes", self.excerpt_bytes.into(), 0, MAX_EXCERPT)?;
        integer("min_characters", self.min_characters, 0, self.max_document_bytes)?;
        integer("max_code_line", self.max_code_line, 1, u64::MAX)?;
        integer("max_code_mean_line", self.max_code_mean_line, 1, u64::MAX)?;
        integer("max_unbroken_run", self.max_unbroken_run, 1, u64::MAX)?;
        share("max_control_share", self.max_control_share)?;
        share("min_letter_share", self.min_letter_share)?;
        share("max_repeated_share", self.max_repeated_share)?;
        if !is_language(&self.main_language) {
            return Err(CurateError::OutOfRange {
                key: "main_language",
                found: self.main_language.clone(),
                allowed:
                    "a language: a code of ISO 639 such as `en`, `eng` or `eng_Latn`, or its English name"
                        .to_owned(),
            });
        }
        self.near_duplicates.as_ref().map_or(Ok(()), MinHash::validate)?;
        self.common_lines.as_ref().map_or(Ok(()), CommonLines::validate)?;
        self.semantic.as_ref().map_or(Ok(()), Semantic::validate)?;
        self.mix.as_ref().map_or(Ok(()), MixConfig::validate)?;
        self.validate_read()
    }

    fn validate_read(&self) -> Result<(), CurateError> {
        let Some(read) = &self.read else {
            return match &self.extract {
                None => Ok(()),
                Some(_) => Err(CurateError::OutOfRange {
                    key: "extract",
                    found: "{}".to_owned(),
                    allowed: "absent without `curate.read`, which is what reads HTML".to_owned(),
                }),
            };
        };
        read.validate()?;
        if self.sources.iter().any(|source| source == REGISTRY) {
            return Err(CurateError::OutOfRange {
                key: "sources",
                found: REGISTRY.to_owned(),
                allowed: "files, folders, globs or URLs where there is `curate.read`".to_owned(),
            });
        }
        Ok(())
    }

    /// Whether a key of [`CurateConfig::side_files`] names a language model.
    pub fn is_language_model(key: &str) -> bool {
        key == SEMANTIC_MODEL || key.starts_with(ENCODER)
    }

    /// The section with the hash of its language model in it, so that a plan made of it is of that model alone.
    ///
    /// # Errors
    /// The section asks for a model of another hash.
    pub fn pinned(&self, inventory: &Inventory) -> Result<CurateConfig, CurateError> {
        let mut config = self.clone();
        if let Some(semantic) = &mut config.semantic
            && let Some(found) = inventory.side_files.get(SEMANTIC_MODEL)
        {
            if let Some(wanted) = semantic.model_hash.as_ref().filter(|wanted| *wanted != found) {
                return Err(CurateError::BadModel {
                    path: semantic.model.clone().unwrap_or_default(),
                    found: format!("its hash is {found}, but `curate.semantic.model_hash` is {wanted}"),
                    hint: "name the model of that hash, or leave `model_hash` out".to_owned(),
                });
            }
            semantic.model_hash = Some(found.clone());
        }
        Ok(config)
    }

    /// The files and folders that filters read, by their keys in the section: models, lists, evaluation sets.
    pub fn side_files(&mut self) -> Vec<(String, &mut PathBuf)> {
        let mut files = Vec::new();
        if let Some(block) = &mut self.url_block {
            let lists = [
                ("domains", &mut block.domains),
                ("urls", &mut block.urls),
                ("banned_words", &mut block.banned_words),
                ("soft_words", &mut block.soft_words),
                ("banned_subwords", &mut block.banned_subwords),
            ];
            for (name, paths) in lists {
                files.extend(numbered(&format!("url_block.{name}"), paths.iter_mut()));
            }
        }
        if let Some(model) = self.language.as_mut().and_then(|language| language.model.as_mut()) {
            files.push(("language.model".to_owned(), model));
        }
        if let Some(dirty) = &mut self.dirty_words {
            files.extend(numbered("dirty_words.lists", dirty.lists.iter_mut()));
        }
        for (at, quality) in self.quality.iter_mut().enumerate() {
            files.push((format!("quality[{at}].model"), &mut quality.model));
            files.extend(quality.encoder.as_mut().map(|encoder| (format!("{ENCODER}[{at}]"), encoder)));
        }
        if let Some(semantic) = &mut self.semantic {
            files.extend(semantic.model.as_mut().map(|model| (SEMANTIC_MODEL.to_owned(), model)));
            files.extend(semantic.embeddings.as_mut().map(|file| ("semantic.embeddings".to_owned(), file)));
        }
        if let Some(decontaminate) = &mut self.decontaminate {
            let sets = decontaminate.sets.iter_mut().flat_map(|set| [&mut set.text, &mut set.hashes]);
            files.extend(numbered("decontaminate.sets", sets.flatten()));
        }
        files
    }
}

const SEMANTIC_MODEL: &str = "semantic.model";
const ENCODER: &str = "quality.encoder";

fn numbered<'a>(
    key: &str,
    paths: impl Iterator<Item = &'a mut PathBuf>,
) -> impl Iterator<Item = (String, &'a mut PathBuf)> {
    paths.enumerate().map(move |(at, path)| (format!("{key}[{at}]"), path))
}

fn integer(key: &'static str, found: u64, low: u64, high: u64) -> Result<(), CurateError> {
    if (low..=high).contains(&found) {
        return Ok(());
    }
    let allowed = if high == u64::MAX { format!("{low} or more") } else { format!("from {low} to {high}") };
    Err(CurateError::OutOfRange { key, found: found.to_string(), allowed })
}

fn share(key: &'static str, found: f64) -> Result<(), CurateError> {
    // NaN is in no range, so it is refused too.
    if (0.0..=1.0).contains(&found) {
        return Ok(());
    }
    Err(CurateError::OutOfRange { key, found: found.to_string(), allowed: "from 0 to 1".to_owned() })
}
