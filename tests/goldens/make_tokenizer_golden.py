"""Makes `tokenizer_ids.json`: ids that `tiktoken` and `tokenizers` give to short texts.

The texts are written here, or drawn from the characters of Unicode with a fixed seed; characters that this Python does not know
are left out, so that no answer depends on a version of Unicode. Llama 3's ids are those of `tiktoken`, from the file that
`cargo xtask fixtures` fetches; those of SmolLM2's vocabulary, with its own split and with GPT-2's, are those of `tokenizers`.

    python make_tokenizer_golden.py ../../fixtures
"""

import json
import random
import sys
import unicodedata
from pathlib import Path

import gguf
import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer, models, pre_tokenizers

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

GREETINGS = """
Hello, how are you?|Hallo, wie geht's dir?|Bonjour, comment ça va ?|¿Hola, qué tal estás?|Olá, tudo bem com você?|Ciao, come stai?
Hallo, hoe gaat het?|Hej, hur mår du?|Hei, hvordan har du det?|Goddag, hvordan går det?|Moi, mitä kuuluu?|Halló, hvað segir þú gott?
Cześć, jak się masz?|Ahoj, jak se máš?|Dobrý deň, ako sa máte?|Zdravo, kako si?|Bok, što ima?|Živjo, kako gre?|Szia, hogy vagy?
Bună ziua, ce mai faci?|Здравствуйте, как дела?|Привіт, як справи?|Здравей, как си?|Здраво, како си?|Прывітанне, як справы?
Γεια σου, τι κάνεις;|Merhaba, nasılsın?|Salam, necəsən?|Салем, қалайсың?|Assalomu alaykum, yaxshimisiz?|Сайн байна уу?|გამარჯობა, როგორ ხარ?
Բարեւ, ինչպե՞ս ես|שלום, מה שלומך?|مرحبا، كيف حالك؟|سلام، حال شما چطور است؟|السلام علیکم، آپ کیسے ہیں؟|ܫܠܡܐ ܥܠܟܘܢ|ሰላም፣ እንዴት ነህ?
नमस्ते, आप कैसे हैं?|নমস্কার, কেমন আছেন?|ਸਤ ਸ੍ਰੀ ਅਕਾਲ, ਤੁਸੀਂ ਕਿਵੇਂ ਹੋ?|નમસ્તે, તમે કેમ છો?|ନମସ୍କାର, ଆପଣ କେମିତି ଅଛନ୍ତି?|வணக்கம், எப்படி இருக்கிறீர்கள்?
నమస్కారం, ఎలా ఉన్నారు?|ನಮಸ್ಕಾರ, ಹೇಗಿದ್ದೀರಾ?|നമസ്കാരം, സുഖമാണോ?|ආයුබෝවන්, කොහොමද?|สวัสดีครับ สบายดีไหม|ສະບາຍດີ, ເຈົ້າສະບາຍດີບໍ?|မင်္ဂလာပါ၊ နေကောင်းလား။
សួស្តី អ្នកសុខសប្បាយទេ?|བཀྲ་ཤིས་བདེ་ལེགས།|你好，你好吗？|您好，最近怎麼樣？|こんにちは、お元気ですか？|안녕하세요, 어떻게 지내세요?|Xin chào, bạn khỏe không?
Halo, apa kabar?|Kumusta ka na?|Habari, hujambo?|Sawubona, unjani?|Ẹ káàárọ̀, ṣé dáadáa ni?|Sannu, yaya kake?|Ndewo, kedu ka ị mere?|Molo, unjani?
Dia duit, conas atá tú?|Shwmae, sut wyt ti?|Kaixo, zer moduz?|Hola, com estàs?|Ola, que tal?|Tere, kuidas läheb?|Sveiki, kā iet?|Labas, kaip sekasi?
Përshëndetje, si jeni?|Bongu, kif int?|Saluton, kiel vi fartas?|Salve, quid agis?|Aloha, pehea ʻoe?|Kia ora, kei te pēhea koe?|ᐊᐃ, ᖃᓄᐃᓕᖓᕕᑦ|ᎣᏏᏲ, ᏙᎯᏧ?
"""

CODE = [
    "fn main() {\n    println!(\"{}\", 1 + 1);\n}\n",
    "def f(x):\n\treturn x ** 2  # square\n\n\nprint(f(12345))\n",
    "#include <stdio.h>\r\nint main(void)\r\n{\r\n    return 0;\r\n}\r\n",
    "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x >= 10 GROUP BY 1;",
    "<div class=\"a b\" id='c'>&nbsp;&lt;text&gt;</div><!-- x -->",
    "for (let i = 0; i < n; i++) { xs[i] ??= ys?.[i] ?? `${i}`; }",
    "{\"key\": [1, 2.5e-3, null, true], \"nested\": {\"a\": \"\\u00e9\"}}",
    "git commit -m 'fix: don\\'t panic' && cargo test --release -- --nocapture",
    "  - item\n    - nested item\n\n\n\n1. first\n10. tenth\n100. hundredth\n1000. thousandth\n",
    "| a | b |\n|---|---|\n| 1 | 22 |\n",
    "https://example.org/a/b?c=d&e=f%20g#h-i_j", "user.name+tag@mail.example.com", "C:\\Users\\me\\file.txt",
    "0x1F600 0b1010 1_000_000 3.14159 6.02e23 -42 +7 1/2 50% $9.99 €5 £3 ¥100 №5", "camelCase snake_case kebab-case SCREAMING_CASE",
    "if(a&&b||!c){x+=1;}else{x-=1;}//done", "=====\n-----\n*****\n_____\n", "\t\t\t\tfour\n        eight\n                sixteen",
]

MATHS = [
    "∀x∈ℝ: x²≥0", "∑_{i=1}^{n} i = n(n+1)/2", "e^{iπ} + 1 = 0", "∫₀^∞ e^{-x²} dx = √π/2", "a≠b ⇒ ¬(a=b)", "A ∪ B ⊆ C ∩ D", "α β γ Δ Ω μ",
    "10⁻³ m·s⁻¹", "x ↦ f(x) ∘ g", "½ ⅓ ¼ Ⅷ ⅻ ① ㊿ ㎏ 𝟙𝟚𝟛", "٠١٢٣٤٥٦٧٨٩", "१२३४५ ১২৩৪ ๑๒๓ ፩፪፫ 〇一二三", "12345678901234567890", "1 22 333 4444 55555",
]

EDGES = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t", " \n", "\n ", " \n \n ", "a ", " a", "  a", "   a  b   c", "a\n", "a\n\nb", "a \n b",
    "\u00a0", "\u00a0\u00a0a", "\u3000", "a\u3000b", "\u2028", "a\u2028b", "\u0085", "\u000b\u000c", "\u200b", "a\u200bb", "\ufeff", "\ufeffa", "\u0000", "a\u0000b",
    "\u001c\u001d\u001e\u001f", "\u007f", "\u00ad", "'s", "'S", "'ſ", "’s", "it's", "IT'S", "they'll've", "I'm you're he'd we've don't can't y'all", "'", "''", "'''s'", "'tis", "'re'RE'rE",
    "ſſ", "K", "İi", "ıI", "ß ẞ", "ǅ ǆ", "ﬁ ﬂ", "é e\u0301", "ñ n\u0303", "각 각", "Z\u0351\u036b\u0343\u036aA\u0317LGO", "🦙", "🦙🦙", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "👍🏽", "☀️ ☀", "a🦙b", " 🦙",
    "!", "!!", "!?!?", "...", "…", "....", "--", "---", "----------", "=" * 40, "#" * 17, "\\\\", "\"\"\"", "``````", "<|eot_id|>", "<|begin_of_text|>", "<|im_start|>user", "<|endoftext|>", "<|", "|>",
    "a" * 100, "ab" * 60, "1" * 50, " " * 50, " " * 51 + "x", "\n" * 30, "\t" * 20, "é" * 40, "字" * 40, "a1b2c3", "abc123def", "1a", "a1", "١a", "½a", "a½", "x²y³", "中文English混合123字",
    "word " * 30, "Word Word WORD wOrD", "antidisestablishmentarianism", "Donaudampfschifffahrtsgesellschaftskapitän", "llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch",
    "\u0300a", "a\u0300\u0301\u0302", " \u0300", "\u094d", "क्षत्रिय", "ກໍ", "\u0e33", "\ue000", "\U000f0000", "\U0010fffd", "\ufffd", "\ufdd0", "\U0001f1e6", "𐍈𐌰", "𓀀𓂀", "𝔘𝔫𝔦", "ℵ₀", "㍿", "ｆｕｌｌ　ｗｉｄｔｈ", "ｱｲｳ",
]


def is_known(c):
    return unicodedata.category(c) not in ("Cn", "Cs")


def drawn(count):
    """Texts of characters from anywhere, of one block, or of those between which splits tell."""
    dice = random.Random(20241130)
    telling = " \n\r\t\u000b\u0085\u00a0\u2028\u3000''’sStTreEvVmMlLdDſKxé字ا\u0301\u094dⅧ12٣½²〇.!_-€🦙\u200d\0"
    known = [chr(c) for c in range(0x110000) if is_known(chr(c)) and not 0xE000 <= c < 0xF900 and c < 0xF0000]
    texts = []
    for at in range(count):
        block = 256 * dice.randrange(0x200)
        near = [chr(c) for c in range(block, block + 256) if not 0xD800 <= c < 0xE000 and is_known(chr(c))] or known
        choose = [known, near, telling][at % 3]
        texts.append("".join(dice.choice(choose) for _ in range(dice.randrange(1, 40))))
    return texts


def smollm2(file):
    """SmolLM2's vocabulary with its own split, and with GPT-2's."""
    field = gguf.GGUFReader(file).get_field
    tokens = field("tokenizer.ggml.tokens").contents()
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges").contents()]
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for split in (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), gpt2]), gpt2):
        tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = split
        yield lambda text, tokenizer=tokenizer: tokenizer.encode(text, add_special_tokens=False).ids


def main(fixtures):
    ranks = load_tiktoken_bpe(str(fixtures / "tokenizer.model"))
    llama3 = tiktoken.Encoding("llama3", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    own, gpt2 = smollm2(fixtures / "SmolLM2-135M-Instruct.Q4_1.gguf")
    greetings = GREETINGS.strip().replace("\n", "|").split("|")
    texts = list(dict.fromkeys(greetings + CODE + MATHS + EDGES + drawn(90)))
    for text in texts:
        assert all(map(is_known, text)) or text in EDGES, text
    golden = [
        {"text": text, "llama3": llama3.encode_ordinary(text), "smollm2": own(text), "gpt2_split": gpt2(text)} for text in texts
    ]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=True, separators=(",", ":")) for entry in golden)
    Path(__file__).with_name("tokenizer_ids.json").write_text(f"[\n{lines}\n]\n")
    print(len(texts), "texts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
