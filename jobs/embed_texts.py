"""spark-submit --properties-file FILE jobs/embed_texts.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import embed_texts

if __name__ == "__main__":
    sys.exit(main(embed_texts))
