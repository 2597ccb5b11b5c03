"""The experiment of Liu and Liu (2019): is generalization lost to lowered dropout or to the parameters removed?"""
