"""spark-submit --properties-file FILE jobs/finetune_sequence.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import finetune_sequence

if __name__ == "__main__":
    sys.exit(main(finetune_sequence))
