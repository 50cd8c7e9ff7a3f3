//! Codes of languages as sources write them, as ISO 639-1.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

/// A line for each language: the code of ISO 639-1, then what stands for it elsewhere: the codes of ISO 639-2 and 639-3, those of the
/// one language that is meant by a group, old codes, and the English name.
const NAMES: &str = "\
aa aar afar
ab abk abkhazian
ae ave avestan
af afr afrikaans
ak aka akan
am amh amharic
an arg aragonese
ar ara arb arabic
as asm assamese
av ava avaric
ay aym ayr aymara
az aze azj azerbaijani
ba bak bashkir
be bel belarusian
bg bul bulgarian
bi bis bislama
bm bam bambara
bn ben bengali bangla
bo bod tib tibetan
br bre breton
bs bos bosnian
ca cat catalan
ce che chechen
ch cha chamorro
co cos corsican
cr cre cree
cs ces cze czech
cv chv chuvash
cy cym wel welsh
da dan danish
de deu ger german
dv div dhivehi divehi
dz dzo dzongkha
ee ewe
el ell gre greek
en eng english
eo epo esperanto
es spa spanish castilian
et est ekk estonian
eu eus baq basque
fa fas per pes prs persian farsi dari
ff ful fulah
fi fin finnish
fj fij fijian
fo fao faroese
fr fra fre french
fy fry frisian
ga gle irish
gd gla
gl glg galician
gn grn guarani
gu guj gujarati
gv glv manx
ha hau hausa
he heb iw hebrew
hi hin hindi
ho hmo
hr hrv croatian
ht hat haitian
hu hun hungarian
hy hye arm armenian
hz her herero
ia ina interlingua
id ind in indonesian
ie ile interlingue
ig ibo igbo
ii iii
ik ipk inupiaq
io ido
is isl ice icelandic
it ita italian
iu iku inuktitut
ja jpn japanese
jv jav jw javanese
ka kat geo georgian
kg kon kongo
ki kik kikuyu
kj kua
kk kaz kazakh
kl kal kalaallisut greenlandic
km khm khmer
kn kan kannada
ko kor korean
kr kau kanuri
ks kas kashmiri
ku kur kmr kurdish
kv kom komi
kw cor cornish
ky kir kyrgyz kirghiz
la lat latin
lb ltz luxembourgish
lg lug ganda
li lim limburgish
ln lin lingala
lo lao
lt lit lithuanian
lu lub
lv lav lvs latvian
mg mlg plt malagasy
mh mah marshallese
mi mri mao maori
mk mkd mac macedonian
ml mal malayalam
mn mon khk mongolian
mr mar marathi
ms msa may zsm malay
mt mlt maltese
my mya bur burmese
na nau nauru
nd nde
ne nep npi nepali
ng ndo ndonga
nl nld dut dutch flemish
nn nno nynorsk
no nor nob nb norwegian
nr nbl
nv nav navajo
ny nya chichewa
oc oci occitan
oj oji ojibwa
om orm gaz oromo
or ori ory odia oriya
os oss ossetian
pa pan punjabi panjabi
pi pli pali
pl pol polish
ps pus pbt pashto
pt por portuguese
qu que quy quechua
rm roh romansh
rn run rundi
ro ron rum mo mol romanian moldavian
ru rus russian
rw kin kinyarwanda
sa san sanskrit
sc srd sardinian
sd snd sindhi
se sme
sg sag sango
si sin sinhala
sk slk slo slovak
sl slv slovenian
sm smo samoan
sn sna shona
so som somali
sq sqi alb albanian
sr srp scc serbian
ss ssw swati
st sot
su sun sundanese
sv swe swedish
sw swa swh swahili
ta tam tamil
te tel telugu
tg tgk tajik
th tha thai
ti tir tigrinya
tk tuk turkmen
tl tgl fil tagalog filipino
tn tsn tswana
to ton tongan
tr tur turkish
ts tso tsonga
tt tat tatar
tw twi
ty tah tahitian
ug uig uyghur uighur
uk ukr ukrainian
ur urd urdu
uz uzb uzn uzbek
ve ven venda
vi vie vietnamese
vo vol
wa wln walloon
wo wol wolof
xh xho xhosa
yi yid ydd ji yiddish
yo yor yoruba
za zha zhuang
zh zho chi cmn chinese mandarin
zu zul zulu";

/// What stands for a language, and its code.
static CODES: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    let line = |line: &'static str| {
        let mut names = line.split(' ');
        let code = names.next().unwrap_or_default();
        names.map(move |name| (name, code))
    };
    NAMES.lines().flat_map(line).collect()
});

/// The code of a language by ISO 639-1, where it has one: of `en-US`, `en_GB.UTF-8`, `eng`, `eng_Latn` and `English` that is `en`. Of a
/// tag of another language its first part; anything else as it is, in small letters. Empty where the source says that it is not known.
pub(crate) fn normalise(language: &str) -> Cow<'_, str> {
    let language = language.trim();
    // What most sources write, as it is.
    if language.len() == 2 && language.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return CODES.get(language).map_or(Cow::Borrowed(language), |&code| Cow::Borrowed(code));
    }
    let lower = language.to_lowercase();
    let first = lower.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    if first == "und" || lower == "unknown" {
        Cow::Borrowed("")
    } else if let Some(&code) = CODES.get(first) {
        Cow::Borrowed(code)
    } else if matches!(first.len(), 2 | 3) {
        Cow::Owned(first.to_owned())
    } else {
        Cow::Owned(lower)
    }
}

/// Whether it names a language: in one of the ways above, or by a code of ISO 639-3.
pub(crate) fn is_language(name: &str) -> bool {
    let code = normalise(name);
    matches!(code.len(), 2 | 3) && code.bytes().all(|byte| byte.is_ascii_lowercase())
}
