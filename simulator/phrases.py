"""The sentences that the simulated model knows. Each starts with a space and ends with a full stop.

A sentence that starts with a space is tokenised by itself as it is inside a text, so the ids of a text are
those of its sentences, joined.
"""

OPENERS = (
    " Let us work through it.",
    " Let me think about this step by step.",
    " First we write down what is given.",
    " We can solve this in a few short steps.",
    " Here is how to get the number.",
    " I will compute the value carefully.",
)
"""How a reply to a problem begins."""

ANSWER_LINES = (
    " The answer is \\boxed{0}.",
    " So the answer is \\boxed{1}.",
    " Therefore the result is \\boxed{2}.",
    " That makes \\boxed{3} in total.",
)
"""How a reply to a problem ends; the digit stands for the number."""

FILLER = (
    " The morning was quiet and the road to the village was empty.",
    " A small boat crossed the lake before the wind came up.",
    " Somebody had left the door of the old library open.",
    " It is worth checking every step twice before going on.",
    " The gardener trained the young tree against the southern wall.",
    " Each branch grows a little every year and keeps its shape.",
    " There is more than one way to look at this question.",
    " We should keep the units in mind while we write the numbers down.",
    " The bakery on the corner sells bread until late in the evening.",
    " Nobody expected the train to arrive on time that day.",
    " A careful reader will notice that the order does not matter here.",
    " The teacher wrote the problem on the board and waited.",
    " Perhaps a simple drawing would make the situation clearer.",
    " The children counted the stones along the river bank.",
    " Several people asked the same question during the week.",
    " Their answers differed, but the method was always the same.",
    " Rain had washed the dust from the windows of the workshop.",
    " The carpenter measured the board once more and cut it.",
    " Some of the letters were written in a hand that few could read.",
    " After lunch they walked back through the orchard.",
    " The light in the kitchen stayed on for most of the night.",
    " An honest estimate is better than an exact mistake.",
    " We may set this aside for now and return to it later.",
    " The market was crowded, noisy and full of good things.",
    " Under the bridge the water moved slowly towards the mill.",
    " It helps to begin with a smaller case and see what happens.",
    " The second page of the report explains the first one.",
    " Birds had built a nest between the roof and the chimney.",
    " A friend of the family repaired the clock in the hall.",
    " What remains is to put the pieces together in the right order.",
    " The map showed a path that no longer existed.",
    " Every summer the same travellers came back to the coast.",
    " Let us make sure that nothing has been counted twice.",
    " The meeting ended earlier than the visitors had planned.",
    " Snow covered the fields and the fences between them.",
    " In the end the simplest explanation turned out to be true.",
    " The engine made a strange sound and then stopped.",
    " A basket of fruit stood on the table near the window.",
    " They agreed to divide the work into equal parts.",
    " Hmm, wait, that does not look quite right yet.",
)
"""Sentences without numbers, for replies of any length."""
