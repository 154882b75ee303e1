"""A synthetic landing zone with known truth: latent topics drive text, picture, sound and behaviour.

``parameters`` says what a world is made of, ``draws`` where its chance comes from; ``catalogue`` and ``people`` hold who
and what there is, ``behaviour`` and ``watching`` what happens, ``arrivals`` how it reaches the landing zone; ``texts``,
``pictures`` and ``sounds`` what items look like; ``tasks`` cuts it into independent pieces that ``job`` runs on Spark.
"""
