//! Extraction on pages made here, and measured on pages of others.

use super::*;

fn text(body: &str) -> String {
    let prose = "The evening was long, and the people of the town spoke about the river and what it had brought them. ";
    let html = format!(
        "<html><head><title>A page</title></head><body><nav><a href=/>Home</a></nav><article><h1>Head</h1>\
                        <p>{0}</p>{body}<p>{0}</p></article><footer>Imprint</footer></body></html>",
        prose.repeat(4)
    );
    let found = Article::default().extract(&html, Some("http://example.com/a")).unwrap();
    assert_eq!(found.title, "Head");
    assert!(!found.text.contains("Home") && !found.text.contains("Imprint"), "{}", found.text);
    found.text
}

#[test]
fn code_keeps_its_lines_and_indentation() {
    let code = "def f(x):\n    if x:\n\treturn  1\n\n    return 2";
    let html = code.replace("return", "<span class=k>return</span>").replace("\n", "\r\n");
    for block in [
        format!("<pre>{html}</pre>"),
        format!("<div class=highlight><pre><code class=python>\n{html}\n</code></pre></div>"),
    ] {
        let text = text(&block);
        assert!(text.contains(&format!("\n\n{code}\n\n")), "{text}");
    }
    let inline =
        text("<p>Call <code>f(x)</code>, which is quick and does what everybody would expect of it.</p>");
    assert!(inline.contains("Call f(x), which"), "{inline}");
}

#[test]
fn formulas_become_latex_once() {
    let mathml = "<math display=block><mrow><mi>x</mi><mo>=</mo><mfrac><mrow><mi>a</mi><mo>+</mo><mn>1</mn></mrow><msqrt><msup><mi>b</mi>\
                  <mn>2</mn></msup></msqrt></mfrac></mrow></math>";
    let katex = "<span class=katex><span class=katex-mathml><math><semantics><mrow><mi>e</mi></mrow>\
                 <annotation encoding=application/x-tex>e^{i\\pi}</annotation></semantics></math></span>\
                 <span class=katex-html aria-hidden=true>eiπ</span></span>";
    let wiki = "<span class=mwe-math-element><span style='display:none'><math alttext='{\\displaystyle E=mc^{2}}'><mi>E</mi></math></span>\
                <img class=mwe-math-fallback-image-inline alt='{\\displaystyle E=mc^{2}}'></span>";
    let script = "<span class=MathJax_Preview>old</span><script type='math/tex; mode=display'>\\int_0^1 x\\,dx</script>";
    let image = "<img class=tex alt='$\\sqrt{2}$'>";
    let formulas = [
        (mathml, "$$x = \\frac{a + 1}{\\sqrt{b^2}}$$"),
        (katex, "$e^{i\\pi}$"),
        (wiki, "$E=mc^{2}$"),
        (script, "$$\\int_0^1 x\\,dx$$"),
        (image, "$\\sqrt{2}$"),
    ];
    for (html, latex) in formulas {
        let text = text(&format!(
            "<p>The formula {html} is known to everybody who went to school and had lessons there.</p>"
        ));
        assert!(text.contains(&format!("The formula {latex} is known")), "{text}");
    }
}

#[test]
fn images_leave_their_alternative_text() {
    let text = text(
        "<figure><img src=a.png alt='A bridge over the river'></figure><p>Here it is: <img alt='a map of the town'> and \
         more words that follow it in this paragraph. <img alt=IMG_1.jpg></p>",
    );
    assert!(text.contains("\n\nA bridge over the river\n\n"), "{text}");
    assert!(text.contains("Here it is: a map of the town and more"), "{text}");
    assert!(!text.contains("IMG_1"), "{text}");
}

#[test]
fn lists_and_tables_have_lines() {
    let text = text(
        "<ul><li>first item of the list</li><li>second item of the list</li></ul>\
         <table><tr><td>one</td><td>two</td></tr><tr><td>three</td><td>four</td></tr></table>",
    );
    assert!(
        text.contains("first item of the list\nsecond item of the list\n\none\ttwo\nthree\tfour\n\n"),
        "{text}"
    );
}

/// A page of this body between a menu and a notice.
fn page(body: &str) -> String {
    format!(
        "<html><head><title>T</title></head><body><nav><a href=/>Home</a> <a href=/b>Blog</a></nav>{body}\
         <footer>Copyright 2024 Example Ltd. All rights reserved</footer></body></html>"
    )
}

#[test]
fn short_pages_keep_their_headings_and_lists_apart() {
    let prose = "This is a paragraph of the page, and it says something about the town and its river.";
    for (body, text) in [
        (format!("<article><h1>Head</h1><p>{prose}</p></article>"), format!("Head\n\n{prose}")),
        (
            format!("<article><h1>Head</h1><p>{prose} {prose}</p></article>"),
            format!("Head\n\n{prose} {prose}"),
        ),
        (
            format!("<article><h1>Head</h1><p>{prose}</p><h2>More</h2><p>Else.</p></article>"),
            format!("Head\n\n{prose}\n\nMore\n\nElse."),
        ),
        (
            format!("<main><h1>Tea</h1><p>{prose}</p><ul><li>water</li><li>leaves</li></ul></main>"),
            format!("Tea\n\n{prose}\n\nwater\nleaves"),
        ),
        (format!("<article><p>{prose}</p></article>"), prose.to_owned()),
        (format!("<main><h1>Tea</h1><article><p>{prose}</p></article></main>"), format!("Tea\n\n{prose}")),
        // Nothing says where the text of these is.
        (
            format!(
                "<h1>Open</h1><ul><li>Monday 9 to 12</li><li>Tuesday 9 to 17</li></ul><p>{prose} {prose}</p>"
            ),
            format!("Open\n\nMonday 9 to 12\nTuesday 9 to 17\n\n{prose} {prose}"),
        ),
        (
            "<h1>Tea</h1><p>A word.</p><ol><li>water</li></ol>".to_owned(),
            "Tea\n\nA word.\n\nwater".to_owned(),
        ),
    ] {
        let found = Article::default().extract(&page(&body), None).unwrap();
        assert_eq!(found.text, text, "{body}");
    }
}

#[test]
fn a_date_is_what_the_page_states() {
    let date = |head: &str, body: &str, url: &str| {
        let html = page(&format!("<article><h1>Head</h1><p>Words of the article.</p>{body}</article>"));
        let html = html.replace("<head>", &format!("<head>{head}"));
        Article::default().extract(&html, Some(url)).unwrap().date
    };
    let url = "http://example.com/a";
    assert_eq!(date("", "<p>© 2019–2023, first seen on 3 May 2021</p>", url), "");
    assert_eq!(date("<meta itemprop=copyrightYear content=2022>", "", url), "");
    assert_eq!(date("<meta property=og:image content=http://example.com/2021/03/04/x.png>", "", url), "");
    assert_eq!(
        date("<meta property=article:published_time content=2021-03-04T05:06:07Z>", "", url),
        "2021-03-04"
    );
    let json = "<script type=application/ld+json>{\"datePublished\": \"2020-02-03\"}</script>";
    assert_eq!(date(json, "", url), "2020-02-03");
    assert_eq!(date("", "<time datetime=2018-07-06>a day</time>", url), "2018-07-06");
    assert_eq!(date("", "", "http://example.com/2017/05/04/a"), "2017-05-04");
}

#[test]
fn pages_without_text_and_pages_too_deep_give_nothing() {
    let article = Article::default();
    let attributes: String = (0..200_000).map(|n| format!(" a{n}")).collect();
    for (html, reason) in [
        ("", "no_main_text"),
        ("<html><body></body></html>", "no_main_text"),
        ("\u{fdd0}", "no_main_text"),
        (&"<div>".repeat(100_000), "page_too_deep"),
        (&"<div>".repeat(600), "page_too_deep"),
        (&"<p>x".repeat(200_000), "page_too_large"),
        (&format!("<p><b title=\"{}\">{}", "x".repeat(900_000), "<p>a".repeat(20_000)), "page_too_large"),
        (&format!("<p{attributes}>x"), "page_too_many_attributes"),
    ] {
        let found = article.extract(html, None).map_err(|dropped| dropped.reason);
        assert_eq!(found, Err(reason.to_owned()), "{}", &html[..html.len().min(30)]);
    }
}

#[test]
fn the_step_leaves_other_documents_alone() {
    let step = Extraction(Article::default());
    let mut plain = Document { text: "<p>kept".into(), ..Document::default() };
    assert_eq!(step.apply(&mut plain), None);
    assert_eq!(plain.text, "<p>kept");
    plain.meta.insert(CONTENT_TYPE.into(), HTML.into());
    assert_eq!(step.apply(&mut plain).map(|dropped| dropped.reason), None);
    assert_eq!(plain.text, "kept");
}
