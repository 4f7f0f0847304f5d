"""The words that the verifier knows: how radiologists call findings, places, sides, doubt and time. Regular expressions.

Written from general usage and not from any phrase table: whoever words a report differently should be understood as well. Where
several match at one place the longest wins, so that "enhancing tumour" is not a "tumour".
"""

from __future__ import annotations

import re

FINDINGS: dict[str, str] = {
    "tumour": r"(?:(?:intra|extra)[- ]?(?:axial|medullary) |focal |suprasellar |pituitary |non[- ]?enhancing )*"
    r"(?:mass(?:es)?(?![- ]+effect)|tumou?rs?|neoplas\w+|\w*gliomas?|\w*blastomas?|astrocytomas?|meningiomas?"
    r"|metasta\w+|(?:micro|macro)?adenomas?|schwannomas?|lymphomas?|ependymomas?|h(?:a|e)?emangiomas?|carcinomas?|sarcomas?)"
    r"|space[- ]occupying lesions?",
    "enhancing tumour": r"(?:(?:areas?|foc(?:us|i)|zones?) of )?(?:(?:contrast|abnormal|pathological|avid|rim|ring|nodular) )*"
    r"(?<!non-)(?<!non )\benhanc(?:ement|ing|es|ed)(?! (?:on|after) ¤)(?: (?:components?|tumou?rs?|mass(?:es)?"
    r"|lesions?|portions?|parts?|nodules?"
    r"|areas?|rim|foc(?:us|i)|tissue|solid))*",
    "necrosis": r"(?:central(?:ly)? )?necro(?:sis|tic)(?: (?:cores?|components?|areas?|cent(?:re|er)s?|cavit(?:y|ies)))?",
    "oedema": r"(?:(?:vasogenic|cytotoxic|peri\w+|surrounding|cerebral|bone marrow|marrow|soft tissue) )*o?edema(?:tous)?",
    "acute infarct": r"(?:(?:areas?|foc(?:us|i)) of )?(?:(?:hyper)?acute|recent|subacute|evolving)(?: \w+)? "
    r"(?:infarct\w*|isch(?:a|e)?emi\w+(?: (?:lesions?|strokes?|changes?|foci))?|strokes?)"
    r"|infarct\w*|strokes?|restricted diffusion|diffusion restriction|isch(?:a|e)?emic lesions?",
    "chronic infarct": r"(?:old|chronic|remote|lacunar|prior) (?:\w+ )?(?:lacunar )?(?:infarct\w*|strokes?)"
    r"|encephalomalacia|lacunes?",
    "haemorrhage": r"(?:(?:intra\w+|sub\w+|extra\w+|epi\w+|parenchymal|petechial|acute) )*"
    r"(?:ha?emorrhag\w+|ha?ematomas?|bleed(?:ing|s)?|micro(?:bleed|ha?emorrhage)s?)|blood products",
    "plaque": r"(?:(?:demyelinat\w+|multiple sclerosis|ms) )+(?:plaques?|lesions?|foc(?:us|i)|disease|process)"
    r"|plaques?(?: of demyelination)?|demyelination|multiple sclerosis",
    "white matter hyperintensity": r"(?:foc(?:us|i) of |areas? of )?(?:periventricular |subcortical |deep "
    r"|confluent |punctate )*"
    r"white[- ]matter (?:hyperintens\w+|lesions?|disease|changes?|foc(?:us|i)|signal \w+|t2 \w+)"
    r"|(?:chronic )?(?:small|micro)[- ]?(?:vessel|vascular|angiopath\w+) (?:isch(?:a|e)?emic )?(?:white matter )?"
    r"(?:lesions?|disease|changes?)|leu[ck]oaraiosis|microangiopathy",
    "midline shift": r"(?:mid-?line|subfalcine) (?:shift\w*|deviat\w+|displace\w+|herniation)"
    r"|(?:shift|deviation|displacement) of (?:the )?mid-?line(?: structures)?",
    "ventricular enlargement": r"ventriculomegaly|hydroceph\w+|ventricular (?:system )?(?:enlarge\w+|dilat\w+)"
    r"|(?:enlarge(?:ment|d)|dilat\w+|prominen(?:ce|t)) (?:of )?(?:the )?(?:lateral |third |fourth )?ventric\w+"
    r"|ventricles? (?:is|are) (?:\w+ )?(?:enlarged|dilated|prominent)",
    "brain atrophy": r"(?:(?:brain|cerebral|cortical|parenchymal|generali[sz]ed|diffuse|global|hippocampal|cerebellar) )*"
    r"(?:atroph\w+|volume loss|parenchymal loss)",
    "image artefact": r"(?:(?:motion|movement|susceptibility|image|metal\w*|wrap) )*(?:artefacts?|artifacts?)|image degradation"
    r"|degraded by motion",
    # Not what the cohort has: other findings of MRI reports, so that a report of another kind is understood as far as may be.
    "disc bulge": r"(?:(?:diffuse|broad[- ]based|wide[- ]base|annular|mild|minimal|posterior|degenerative|annulus) )*"
    r"dis[ck](?: \w+)? bulg\w+|bulging (?:of (?:the )?)?(?:\w+ )?dis[ck]s?|annular bulg\w+|bulging annulus",
    "disc herniation": r"dis[ck](?:al)? (?:hernia\w*|protrus\w*|extru\w+|prolaps\w*|sequest\w+)|herniated (?:nucleus|dis[ck]s?)"
    r"|herniations?|protrusions?|extrusions?",
    "disc degeneration": r"(?:degenerat\w+|desiccat\w+|dehydrat\w+)(?: (?:of (?:the )?)?(?:annular |facet "
    r"|dis[ck]|spine|changes?|disease|spondylo\w*))*"
    r"|spondylosis|dis[ck](?: space)? (?:narrowing|degenerat\w+|desiccat\w+|dehydrat\w+)|loss of dis[ck] height|osteophyt\w+",
    "stenosis": r"(?:(?:spinal|canal|foraminal|central|lateral recess|neuroforaminal|neural foramina\w*) )*"
    r"(?:stenos[ie]s|narrowing)|stenotic|narrowing (?:of )?(?:the )?(?:\w+ ){0,2}(?:canals?|foram\w+|recess\w*)",
    "nerve compression": r"(?:(?:thecal sac|nerve roots?|cord|sac"
    r"|root) )+(?:or (?:nerve roots? )?)?(?:compress\w*|imping\w+|encroach\w+)"
    r"|(?:compress\w*|imping\w+|indent\w+|encroach\w+|abut\w+|effac\w+)(?: (?:on|upon|of|the|both|right|left"
    r"|exit\w*|lateral|ventral|anterior|bilateral|l5|s1))*"
    r" (?:thecal|nerve|sac|cord|dural|foram\w+|neural|exit canals?|roots?|lateral)",
    "muscle spasm": r"(?:paraspinal )?muscle spasm|loss of (?:the )?(?:normal )?lordosis|straightening of",
    "annular tear": r"(?:annular|torn|labral|meniscal|rotator cuff|tendon|ligament\w*) (?:tears?|annulus"
    r"|fissures?|rupture)|tears?",
    "fracture": r"(?:compression |wedge |stress )?fractures?",
    "spondylolisthesis": r"(?:spondylo|antero|retro)-?listhesis",
    "cyst": r"(?:\w+ )?cysts?|cystic(?: (?:lesions?|mass(?:es)?|degeneration))?|syrinx|syringomyelia",
    "effusion": r"(?:joint |pleural )?effusions?|fluid collections?",
    "hypertrophy": r"(?:ligament\w* (?:flavum )?|facet )?hypertroph\w+",
    "aneurysm": r"aneurysms?",
    "abscess": r"abscess\w*",
    "fistula": r"fistulas?",
    "scoliosis": r"scoliosis|kyphosis",
    "abnormal signal": r"(?:abnormal|hyperintense|hypointense|high|low|increased"
    r"|decreased)(?: \w+)? signal(?: (?:change|intensity|abnormality))?",
    "lesion": r"lesions?",
    "mass effect": r"mass[- ]effect",
}  # fmt: skip
STRUCTURES = {
    "hippocampus": r"hippocamp(?:us|i)", "thalamus": r"thalam(?:us|i)", "caudate": r"caudates?(?: nucle(?:us|i))?",
    "putamen": r"putam(?:en|ina)", "pallidum": r"pallid(?:um|a)", "lateral ventricle": r"lateral ventricles?",
    "brainstem": r"brain ?stem",
}  # fmt: skip
PLACES: dict[str, str] = {
    "frontal lobe": r"\w*frontal(?:ly)?\b", "parietal lobe": r"\w*parietal(?:ly)?\b", "temporal lobe": r"\w*temporal(?:ly)?\b",
    "occipital lobe": r"\w*occipital(?:ly)?\b", "cerebellum": r"cerebell\w+", "brainstem": r"brain ?stem|pons"
    r"|pontine|medulla|midbrain",
    "deep grey matter": r"deep gr[ea]y matter|basal ganglia|thalam\w+|putam\w+|caudate|pallid\w+|lentiform",
    "cerebral white matter": r"(?:cerebral |deep |periventricular )?white matter|centrum semiovale|corona radiata",
}  # fmt: skip

SIDES = {
    "right": r"\b(?:right(?:ward|-sided)?s?|rt)\b", "left": r"\b(?:left(?:ward|-sided)?s?|lt)\b",
    "bilateral": r"\b(?:bilateral(?:ly)?|both|either side)\b", "midline": r"\b(?:mid-?line|median|central)\b(?! shift)",
}  # fmt: skip

NUMBER = re.compile(
    r"(?<![\w.,/-])(\d+(?:[.,]\d+)?)(?:\s*(?:x|×|\*|by)\s*(\d+(?:[.,]\d+)?))?(?:\s*(?:x|×|\*|by)\s*(\d+(?:[.,]\d+)?))?"
    r"[ -]*(mm|cm|ml|cc|cm3|%|millimet\w+|centimet\w+)(?!\w)"
)
UNITS = {"cc": "ml", "cm3": "ml", "millimeter": "mm", "millimetre": "mm", "centimeter": "cm", "centimetre": "cm"}
COUNT_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
COUNT = re.compile(rf"(?<![\w.,/-])(\d{{1,3}}|{'|'.join(COUNT_WORDS)})(?![\w.,/-]|\s*(?:mm|cm|ml|cc|%|x|×|\*)\b)")

SEVERITY = {
    "mild": r"\b(?:mild(?:ly)?|slight(?:ly)?|minimal(?:ly)?|minor|subtle|discrete)\b", "moderate": r"\bmoderate(?:ly)?\b",
    "severe": r"\b(?:severe(?:ly)?|marked(?:ly)?|extensive(?:ly)?|gross(?:ly)?|pronounced|considerabl[ey]|advanced|largely)\b",
}  # fmt: skip

HEDGES = {
    "unlikely": r"\b(?:unlikely|improbable|doubtful|less likely|not likely)\b",
    "likely": r"(?<!un)(?<!less )(?<!not )\b(?:likely|probabl[ey]|presum\w+|suggest\w*(?: of)?|consistent with|compatible with"
    r"|in keeping with|favou?r(?:s|ed|ing)?|suspicious for|highly suspected|felt to represent|most likely)\b",
    "possible": r"\b(?:possibl[ey]|may|might|could (?:be|represent|reflect)|questionable|suspect\w*|suspicio\w+"
    r"|perhaps|equivocal"
    r"|uncertain|indeterminate|cannot be (?:excluded|ruled out)|not (?:entirely )?excluded|can not be excluded|differential"
    r"|versus|query|suspected|concern(?:ing)? for|rule out)\b",
}  # fmt: skip

# Negation after NegEx (Chapman et al. 2001): what comes before, what comes after, and where a scope ends.
NEGATED_BEFORE = re.compile(
    r"\b(?:no|not|without|absence of|negative for|free of|denies|never|neither|nor|lack of|no longer|fails? to (?:show|reveal)"
    r"|rather than|ruled out(?= for))\b"
)
NEGATED_AFTER = re.compile(
    r"\b(?:(?:is|are|was|were|be|been)? ?not (?:been )?(?:clearly |definitely )?(?:seen|identified|present"
    r"|demonstrated|noted|visuali[sz]ed|detected|found"
    r"|evident|shown|appreciated|there)|(?:is|are|was|were) absent|absent|ruled out|(?:is|are|was|were"
    r"|been) excluded|(?:is|are|was|were) negative"
    r"|none|not there)\b"
)
NOT_NEGATION = re.compile(
    r"\bno(?:t)? (?:significant )?(?:interval )?change\w*\b|\bnot (?:entirely |be )?excluded\b"
    r"|\bcannot be (?:excluded|ruled out)\b"
    r"|\bnot only\b|\bnot likely\b|\bno other\b|\bno further\b|\bno definite evidence against\b"
)
SCOPE_ENDS = re.compile(
    r"\b(?:but|however|although|though|except|apart from|other than|aside from|besides|yet|whereas|while|which)\b"
    r"|, (?:there (?:is|are)|with\b)|(?<=\w) with (?:a |an |mild|moderate|severe|diffuse)"
)
NOT_ASSESSED = re.compile(
    r"\b(?:not|cannot be|can ?not be|could not be|not be|never) (?:adequately |fully |reliably )?(?:assess\w*"
    r"|evaluat\w*|determin\w*|examined|interpretable)"
    r"|\bno assessment of\b|\bnon-?diagnostic\b|\blimited (?:assessment|evaluation)\b"
)

# Of something that is there: neither is it unassessed, nor is a side in the reason its own.
SIDE_UNKNOWN = re.compile(r"\bside not assessed(?: \([^)]*\))?")
# Of what is too small to count: the number is a rule's and no measurement.
RULE = re.compile(r"\bless than [\d.]+ ml counts as absent")

WHEN = r"(?:(?:the )?(?:prior|previous|earlier|last)(?: \w+)?|§+|\d{4}-\d\d-\d\d)"
CHANGES = {
    "new": rf"\bnew since\b|\bnewly\b|\bnew\b(?! york)|\bnot (?:present|seen|there) (?:on|in) {WHEN}",
    "resolved": r"\b(?:resolved|resolution of|disappeared|gone since|no longer)\b",
    "grown": rf"\b(?:increased|increase|larger|grown|progress\w+|enlarged|worse\w*) (?:(?:in size|slightly"
    r"|markedly) )*(?:since|than|from|compared|in the interval)"
    rf"|\binterval (?:increase|growth|progression|worsening)\b|\blarger (?:than )?(?:on|in)? ?{WHEN}",
    "shrunk": rf"\b(?:decreased|decrease|smaller|reduced|regress\w+|improved) (?:(?:in size|slightly"
    r"|markedly) )*(?:since|than|from|compared|in the interval)"
    rf"|\binterval (?:decrease|improvement|regression)\b|\bsmaller (?:than )?(?:on|in)? ?{WHEN}",
    "stable": r"\b(?:unchanged|stable|no (?:significant )?(?:interval )?change|similar to (?:the )?(?:prior"
    r"|previous)|persist\w*|again (?:seen|noted|demonstrated))\b",
}  # fmt: skip
PRIOR = re.compile(
    r"\b(?:prior|previous(?:ly)?|compar(?:ed|ison)|interval|since (?:the |§|\d|prior|previous|last)|follow-?up"
    r"|earlier (?:study|examination|mri|scan)|last (?:study|mri|scan))\b"
)
RECORD = re.compile(
    r"\b(?:history of|history|known|status post|s/p|clinical (?:information|history|details)|the record|presented with"
    r"|complain\w*|past medical|patient (?:has|had|with)|year[- ]old)\b"
)
SIGNALS = {
    "hyperintense": r"\b(?:hyperintens\w+|bright|high(?:er)? signal|increased signal|restricted)\b",
    "hypointense": r"\b(?:hypointens\w+|dark|low(?:er)? signal|decreased signal)\b",
    "isointense": r"\bisointens\w+\b", "enhancing": r"\benhanc\w+ (?=(?:on|after) ¤)",
}  # fmt: skip
CONTRASTS = {
    "T1w-contrast": r"\bt1(?:[- ]?weighted|w)? (?:images? )?(?:after|with|post|following)[- ]?(?:contrast|gadolinium)"
    r"|\b(?:post[- ]contrast|contrast[- ]enhanced|gadolinium[- ]enhanced)(?: t1(?:[- ]?weighted|w)?)?(?: images?)?",
    "T2star": r"\bt2(?:\*|[- ]?star)(?:[- ]?weighted)?", "FLAIR": r"\b(?:t2[- /])?flair\b",
    "T2w": r"\bt2(?:[- ]?weighted|w)?(?!\w|\*)",
    "T1w": r"\bt1(?:[- ]?weighted|w)?(?!\w|\*)", "DWI": r"\bdwi\b"
    r"|\bdiffusion[- ]weighted(?: \w+)?", "ADC": r"\badc\b|\bapparent diffusion\b",
    "PD": r"\bproton density\b|\bpd\b", "MRA": r"\bmra\b",
}  # fmt: skip
