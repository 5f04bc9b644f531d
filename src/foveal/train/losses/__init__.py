"""Losses: pure functions of tensors, and of a process group where pairs are compared across processes.

next_token.py     the answers' tokens (all vision-language families)
contrastive.py    CLIP's softmax over pairs, and distillation from a teacher
sigmoid.py        SigLIP's sigmoid over pairs
balance.py        what keeps the experts of DeepSeek-V2 evenly used
classification.py classes of pictures (ViT)
"""
